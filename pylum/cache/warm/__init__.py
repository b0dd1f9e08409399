"""Questions to histories that are cached: one recording for all calls of a size.

What is promised of their answers, on a GPU:

* A call whose rows fill its size is answered to the bit as without a recording: the same kernels
  run on the same shapes.
* Other calls are padded with rows that nobody reads. Attention gives each row the bits it has
  alone. The matrix products of a model are torch's, which chooses its kernel by the number of
  rows: between a padded call and the same one without a recording, or between calls of two sizes,
  answers may differ in the last bits.
* Among calls of one size, an answer depends on its own row, history and question alone: whoever is
  asked beside it, and however many rows are padding, it is the same to the bit. Of an HSTU that
  holds for its tokens as they are looked up before the recording; where items have features those
  are products of torch too, of as many rows as there are items.
"""

from pylum.cache.warm.questions import WarmQuestions
from pylum.cache.warm.recording import Call

__all__ = ["Call", "WarmQuestions"]
