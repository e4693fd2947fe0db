"""The verb demo: models, noise and rooms to see and hear in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..outputs import claim_folder
from .bars import Bars
from .options import Overwrite, Seed, Sources, argument, option, source
from .output import say

SITE_FILES = (
    "index.html", "*.js", "*.css", "site.json", "models", "speech", "noise", "rooms", "onnxruntime", ".DS_Store",
)  # fmt: skip


def demo(
    models: Annotated[list[str], argument("Students or teachers, as for `evaluate`; `name=model` gives another name.")],
    task: Annotated[list[str], option("`RESULTS/heads/TASK`, or a file in it; repeatable.", "--task", metavar="HEADS")],
    out: Annotated[Path, option("The folder of the site.")] = Path("site"),
    speech: Annotated[Sources, source("--speech", "At most twelve utterances to offer; else synthetic voices.")] = None,
    int8: Annotated[bool, option("Models in 8 bits: a quarter of the size.", "--int8")] = False,
    serve: Annotated[bool, option("Show the site on this machine until Ctrl-C.", "--serve")] = False,
    port: Annotated[int, option("The port of --serve; 0 takes a free one.", min=0, max=65_535)] = 8000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a page that contaminates speech and runs the models in a browser: a static site, nothing leaves it.

    The ONNX engine for browsers is fetched once from the npm registry, which needs Node.js with npm.

    Example: `robustdistiller demo mini-hubert runs/rd/student --task results/heads/keywords --out site/ --serve`
    """
    claim_folder(out, "demo", SITE_FILES, "site.json", [*models, *task, *(speech or ())], overwrite)
    from ..audio.prepare import prepare_all
    from ..demo.site import build_site
    from ..demo.site import serve as start

    with Bars() as bars:
        found = prepare_all(speech, "speech", progress=bars.of("scanning")).recordings if speech else ()
        page = build_site(models, task, out, found, int8, seed, bars.show)
    say(f"page: {page}")
    if not serve:
        return
    with start(out, port) as server:
        say(f"open http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()
