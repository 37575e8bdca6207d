"""A published mmMamba folder behind the harness's adapter protocol."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.hybrid.adapter import HybridAdapter
from vlmamba_eval.model_adapters.hybrid.checkpoint import folder_of, load_into
from vlmamba_eval.model_adapters.hybrid.engine import HybridEngine
from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.vlmamba import ssd
from vlmamba_eval.model_adapters.vlmamba.checkpoint import fingerprint

from . import PUBLISHED, Options
from .conversation import MMMambaConversation, load_texts
from .model import MMMamba, config_of_published, keeps_float32, name_of_published
from .tiles import cut


def load(name: str, options: Options) -> Deferred:
    """The adapter for a folder of published weights."""
    folder = folder_of(name, "mmmamba", PUBLISHED)
    where = folder / "config.json"
    config = config_of_published(read_json(where, "an mmMamba's configuration"), str(where))
    conversation = MMMambaConversation(load_texts(folder), config, str(folder))
    device, dtype = choose(options.device, options.dtype)
    info = AdapterInfo(
        name=name if name in PUBLISHED else f"mmmamba:{folder.resolve().name}",
        weights=fingerprint(folder),
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=config.tile_tokens * (options.max_tiles + (options.max_tiles > 1)),
        settings={
            "model": asdict(config),
            "template": "internlm2-chat",
            "max_tiles": options.max_tiles,
            "ssd_backend": ssd.choose_backend(device),
            "state_dtype": "float32",
            "sharing": options.sharing,
        },
    )

    def read() -> HybridAdapter:
        with torch.device("meta"):
            model = MMMamba(config)
        load_into(model, folder, partial(name_of_published, config), device, dtype, keeps_float32)
        model.prepare_for_inference()
        engine = HybridEngine(model, conversation, sharing=options.sharing)
        return HybridAdapter(engine, info, partial(cut, size=config.image_size, most=options.max_tiles))

    return Deferred(info, read)
