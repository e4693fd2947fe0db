"""Named foldings of phone sets: which phones are counted as one, and which are dropped (an empty string)."""

from __future__ import annotations

# The 61 phones of TIMIT reduced to 39 for scoring, as proposed by Lee and Hon (1989).
TIMIT39 = {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m", "en": "n",
    "nx": "n", "eng": "ng", "zh": "sh", "ux": "uw", "pcl": "sil", "tcl": "sil", "kcl": "sil", "bcl": "sil",
    "dcl": "sil", "gcl": "sil", "h#": "sil", "pau": "sil", "epi": "sil", "q": "",
}  # fmt: skip

FOLDINGS = {"timit39": TIMIT39}
