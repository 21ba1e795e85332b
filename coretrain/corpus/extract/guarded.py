"""Pages go through a process of their own, which may hang, die or want too much memory: the page is named, and a new
process goes on with the next one.

None is lost, doubled or moved. That a process ended may not be the page's fault: all but those that ran out of their
time are tried once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.extract.process import AHEAD, Place, Read, Watched

HELD = 1024
"""Items that are on their way at most."""


def guarded(items: Iterable[Read], extractor: Extractor) -> Iterator[Document | Trouble]:
    """Pages as documents, in their order; what else is among `items` comes through as it is.

    A page that takes too long, too much memory, or the process with it, becomes a `Trouble` of kind `timeout`,
    `memory`, `crashed` or `failed`.
    """
    places, worker = deque[Place](), Watched(extractor)
    source, more = iter(items), True
    try:
        while more or places:
            # no further than needed: documents that come through as they are may be large
            while more and worker.ahead < AHEAD and len(places) < HELD and not (places and places[0].result):
                item = next(source, None)
                if item is None:
                    more = False
                elif isinstance(item, Page):
                    places.append(Place(item))
                    worker.ask(places[-1])
                else:
                    places.append(Place(item, item))
            while places and (result := places[0].result) is not None:
                places.popleft()
                yield result
            if places and (worker.ahead >= AHEAD or len(places) >= HELD or not more):
                worker.wait()
    finally:
        worker.close()
