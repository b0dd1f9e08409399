"""append_pages beside torch's indexed copy. Bytes: k and v read once and written once."""

import torch

import pylum
from benchmarks.harness import compare
from pylum.ops import PagedPrefix
from pylum.ops.pages import pages_like

PAGE = 64


def main() -> None:
    for users, tokens, heads, dim in ((1, 2_048, 8, 64), (64, 192, 8, 64), (256, 2, 8, 64)):
        total, pages = users * tokens, -(-tokens // PAGE)
        k, v = torch.randn(total, heads, dim), torch.randn(total, heads, dim)
        offsets = torch.arange(users + 1) * tokens
        table = torch.arange(users * pages).view(users, pages)
        pools = pages_like(k, v, users * pages)
        prefix = PagedPrefix(*pools, table, torch.zeros(users, dtype=torch.int64))
        place = torch.arange(tokens).repeat(users)
        page = table.repeat_interleave(tokens, 0)[torch.arange(total), place // PAGE]
        plain = [torch.zeros(users * pages, PAGE, heads, dim) for _ in range(2)]

        def copied(plain=plain, page=page, place=place, k=k, v=v):
            plain[0][page, place % PAGE] = k
            plain[1][page, place % PAGE] = v

        def appended(prefix=prefix, k=k, v=v, offsets=offsets):
            pylum.ops.append_pages(prefix, k, v, offsets, starts=prefix.lengths)

        compare(
            f"append_pages {users} x {tokens:,} tokens, {heads} x {dim}, float32",
            {"torch indexed copy": copied, "pylum.ops.append_pages": appended},
            baseline="torch indexed copy",
            bytes=4.0 * 4 * k.numel(),
        )


if __name__ == "__main__":
    main()
