"""The checkpoint's own processor.

Pictures go through Pillow, also if torchvision is installed: the same pixels everywhere. Where a processor exists in a
version for torchvision alone, that is said before any weights are read. Video processors all need torchvision; nothing
here shows a video, so processors are made without theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from vlmamba_eval.model_adapters.shared.configuration import reason
from vlmamba_eval.model_adapters.shared.hub_checkpoint import HubCheckpoint
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import ModelError

_IMAGE_MODELS = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"


def check_architecture(checkpoint: HubCheckpoint) -> None:
    """Raises `ModelError` unless transformers itself has the model, as one that answers about images."""
    import transformers
    from transformers.models.auto import modeling_auto

    kind = checkpoint.config["model_type"]
    if kind in getattr(modeling_auto, _IMAGE_MODELS):
        return
    if "auto_map" in checkpoint.config:
        raise ModelError(
            f"{checkpoint.folder}: its model is code of its own (auto_map), which is never run here "
            "(trust_remote_code is off). Look for it in transformers' own format, or serve it and use --model openai:"
        )
    raise ModelError(
        f"{checkpoint.folder}: transformers {transformers.__version__} has no image-text-to-text model of the type "
        f"{kind!r}."
    )


def load_processor(checkpoint: HubCheckpoint) -> Any:
    """The processor, with Pillow behind it. Raises `ModelError` that names what is missing."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]

    kind = checkpoint.config["model_type"]
    name = _stated_class(checkpoint) or PROCESSOR_MAPPING_NAMES.get(kind)
    if name is None:
        raise ModelError(f"{checkpoint.folder}: transformers knows no processor for the type {kind!r}")
    try:
        cls = _class(name, kind)
        attributes = cls.get_attributes()
        parts: dict[str, Any] = {}
        for part in attributes:
            if part == "tokenizer":
                parts[part] = transformers.AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
            elif part == "image_processor":
                parts[part] = _image_processor(checkpoint)
            else:
                parts[part] = None  # videos, sounds

        class Pictures(cls):
            """The processor for pictures and texts alone."""

            def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
                if argument is None:
                    return None
                return super().check_argument_for_proper_class(argument_name, argument)

            @classmethod
            def _get_arguments_from_pretrained(cls, *_: Any, **__: Any) -> list[Any]:
                return [parts[part] for part in attributes]

        Pictures.__name__ = cls.__name__
        return Pictures.from_pretrained(checkpoint.folder, local_files_only=True)
    except ImportError as error:
        if "torchvision" in reason(error).lower():
            raise _needs_torchvision(checkpoint, name) from None
        raise ModelError(f"{checkpoint.folder}: its processor {name} cannot be made: {reason(error):.300}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{checkpoint.folder}: its processor {name} cannot be made: {reason(error):.300}") from error


def _stated_class(checkpoint: HubCheckpoint) -> str | None:
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        try:
            text = (checkpoint.folder / file).read_text(encoding="utf-8")
            stated = parse_json(text, constants=True).get("processor_class")
        except (OSError, ValueError, AttributeError):
            continue
        if stated:
            return str(stated)
    return None


def _class(name: str, kind: str) -> Any:
    import transformers

    if hasattr(transformers, name):
        return getattr(transformers, name)
    module = importlib.import_module(f"transformers.models.{kind}.processing_{kind}")
    return getattr(module, name)


def _image_processor(checkpoint: HubCheckpoint) -> Any:
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(
            checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (ImportError, ValueError) as error:
        if "torchvision" in str(error).lower() and importlib.util.find_spec("torchvision") is None:
            raise _needs_torchvision(checkpoint, "image processor") from None
        raise


def _needs_torchvision(checkpoint: HubCheckpoint, what: str) -> ModelError:
    return ModelError(
        f"{checkpoint.folder}: transformers has the {what} of {checkpoint.config.get('model_type')} for torchvision "
        "alone, which is not installed. Install the torchvision that belongs to your PyTorch, or serve the model and "
        "use --model openai:"
    )
