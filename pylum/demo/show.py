"""One user's answers, side by side."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pylum.data import ANY, Interactions
from pylum.demo.case import Case
from pylum.generation import generate
from pylum.generation.limits import REPEATS
from pylum.model import LUM


def one_user(console: Console, case: Case, model: LUM, test: Interactions) -> None:
    """The last five items of the first user asked, three conditions, three lists, the truth."""
    targets = test.events.targets
    assert targets is not None
    names = _names(test)
    user, conditions = _choose(case, test)
    start, stop = (int(test.events.offsets[user + i]) for i in (0, 1))
    scored = torch.arange(start, stop)[targets[start:stop]]
    first = int(scored[0])
    truth = {(_condition(case, test, int(i)), int(test.events.items[i])) for i in scored}
    console.print(f"\n[bold]One user[/bold] ({test.users[user]}), last five items:")
    for i in range(max(start, first - 5), first):
        said = _condition(case, test, i)
        console.print(
            f"  {names[int(test.events.items[i])]}" + (f"  [dim]({said})[/dim]" if said else "")
        )
    history = test.histories([test.users[user]])
    events = history.events.take(
        torch.arange(first - start), torch.tensor([0, first - start], dtype=torch.int64)
    )
    asked = type(history)(history.users, events, history.schema, history.vocabs)
    exclude = "none" if model.record.repeat_share > REPEATS else "history"
    wanted = conditions if case.condition else None
    answers = generate(model, asked, wanted, k=5, exclude=exclude)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for condition in conditions:
        table.add_column("ANY" if condition is ANY else str(condition), no_wrap=True)
    ids = test.vocabs.items.rows([i for i in answers.items.reshape(-1).tolist() if i is not None])
    rows = iter(ids.tolist())
    cells = [[next(rows) if item is not None else None for item in line] for line in answers.items]
    for rank in range(5):
        table.add_row(
            *(
                _cell(names, line[rank], (None if c is ANY else c, line[rank]) in truth)
                for c, line in zip(conditions, cells, strict=True)
            )
        )
    console.print("what comes next, by condition; [green]✓[/green] chosen in the test part:")
    console.print(table)


def _cell(names: list[str], row: int | None, true: bool) -> str:
    if row is None:
        return ""
    return f"[green]✓ {names[row]}[/green]" if true else f"  {names[row]}"


def _choose(case: Case, test: Interactions) -> tuple[int, list[Any]]:
    """The first user with test events under most conditions, and three conditions to ask."""
    targets = test.events.targets
    assert targets is not None
    best = 0
    chosen: list[Any] = [ANY]
    most = Counter(_condition(case, test, int(i)) for i in targets.nonzero()[:2000, 0])
    common = [c for c, _ in most.most_common() if c is not None]
    for user in range(min(len(test), 500)):
        start, stop = (int(test.events.offsets[user + i]) for i in (0, 1))
        mine = torch.arange(start, stop)[targets[start:stop]]
        if len(mine) == 0 or int(mine[0]) - start < 5:
            continue
        own = list(dict.fromkeys(_condition(case, test, int(i)) for i in mine))
        own = [c for c in own if c is not None]
        if not own and case.condition is None:
            return user, [ANY]
        wanted = [*own, *(c for c in common if c not in own)][:3]
        if len(own) >= len(chosen) and len(wanted) == 3:
            best, chosen = user, wanted
            if len(own) >= 3 or case.protocol == "loo-full":
                break
    return best, list(chosen)


def _condition(case: Case, data: Interactions, index: int) -> Any:
    if case.condition is None:
        return None
    row = data.events.conditions[case.condition][index : index + 1]
    value = data.vocabs.conditions[case.condition].values(row.numpy())[0]
    return None if value is ANY else value


def _names(data: Interactions) -> list[str]:
    """A readable name of every item row: its title, else its id."""
    rows = torch.arange(len(data.vocabs.items)).numpy()
    ids = data.vocabs.items.values(rows)
    titles = data.items.names(rows) if data.items.titles is not None else ids
    return [str(t if t is not None else i) for t, i in zip(titles, ids, strict=True)]
