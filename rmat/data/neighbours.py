"""A file behind others of its folder, as a repository is read before one of its files is written."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmat.data.store import TokenStore

MOST_NEIGHBOURS = 3
"""A file stands behind so many others at most."""


class Neighbours:
    """Which documents of a store are files of one folder. Only documents that open with a file name count.

    Args:
        store: where the documents are; two are neighbours if they came from one SPEC and their names have one folder.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._folder: dict[int, tuple[int, str]] = {}
        self._members: dict[tuple[int, str], list[int]] = {}
        for index, part in enumerate(store.parts.tolist()):
            if store.document_header(index) > 1:
                folder = (part, PurePosixPath(store.name(index)).parent.as_posix())
                self._folder[index] = folder
                self._members.setdefault(folder, []).append(index)

    def before(self, index: int, tokens: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """`tokens` of document `index` behind one to MOST_NEIGHBOURS others of its folder, drawn at random.

        Every file keeps its header; the document token stands once, in front. A document without neighbours stays as
        it is.
        """
        others = [
            other for other in self._members.get(self._folder.get(index, (-1, "")), []) if other != index
        ]
        if not others:
            return tokens
        count = min(len(others), int(generator.integers(1, MOST_NEIGHBOURS, endpoint=True)))
        chosen = generator.choice(len(others), size=count, replace=False)
        files = [self._store.view(others[number])[1:] for number in chosen]
        return np.concatenate((tokens[:1], *files, tokens[1:]))
