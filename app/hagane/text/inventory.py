"""The models on this machine: in stores and in the hub's cache; listing and removing them."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from hagane.models.config import CONFIG_FILE
from hagane.models.spec import checkpoint_shapes
from hagane.system.errors import ConflictError, ModelError, NotFoundError
from hagane.system.settings import Settings
from hagane.text.hub import BUILTIN_MODELS, is_hub_id, model_stores, own_store, stored_bytes
from hagane.text.pulling import HIDDEN_FOLDER, REMOVED
from hagane.weights.sources.config import is_gguf, load_config, model_name
from hagane.weights.sources.gguf.file import SUFFIX, GGUFModel, expected_shards, shard_paths


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine. `size` is in bytes; `place` is a store's directory or "hub"."""

    name: str
    path: Path
    size: int
    place: str


def stored_models(settings: Settings) -> list[StoredModel]:
    """The models that a server finds by name, then those of the hub's cache."""
    found = [model for store in model_stores(settings) for model in _in_store(store)]
    return [*found, *_in_hub_cache()]


def _in_store(store: Path) -> Iterator[StoredModel]:
    for path in sorted(store.glob("*")):
        if is_gguf(path) and expected_shards(path)[0] == path:
            yield StoredModel(model_name(path), path, stored_bytes(path), str(store))
        elif (path / CONFIG_FILE).is_file() or any(path.glob(f"*{SUFFIX}")):
            yield StoredModel(path.name, path, stored_bytes(path), str(store))


def _in_hub_cache() -> Iterator[StoredModel]:
    # 8 MB that a server of local models does without.
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda found: found.repo_id):
        if repository.repo_type != "model":
            continue
        names = {file.file_name for found in repository.revisions for file in found.files}
        if any(name.endswith((SUFFIX, ".safetensors")) for name in names):
            path, size = repository.repo_path, repository.size_on_disk
            yield StoredModel(repository.repo_id, path, size, "hub")


def remove(name: str, settings: Settings) -> StoredModel:
    """Delete a model of the store or the hub's cache, and return what it was.

    Raises ModelError if there is none of this name, or if it is a built-in model or a job's.
    """
    if is_hub_id(name):
        return _remove_from_cache(name)
    model = find_removable(name, settings)
    shutil.rmtree(take_out(model))
    return model


def find_removable(name: str, settings: Settings) -> StoredModel:
    """The model `name` of the store that a server or command may delete from.

    Raises NotFoundError if there is none of this name, and ConflictError if it is a built-in model
    or a job's.
    """
    for store in model_stores(settings):
        for model in _in_store(store):
            if model.name == name:
                _require_own(model, settings)
                return model
    raise NotFoundError(
        f"there is no model {name!r} to remove; see `hagane models list`", param="model"
    )


def _require_own(model: StoredModel, settings: Settings) -> None:
    name, own = model.name, str(own_store(settings))
    if model.place == own:
        return
    why = (
        "a built-in one: it stays"
        if model.place == str(BUILTIN_MODELS)
        else f"a job's: delete it by DELETE /v1/models/{name}"
    )
    raise ConflictError(f"model {name!r} is {why}", param="model", code="model_not_removable")


def take_out(model: StoredModel) -> Path:
    """Move a model out of its store at once, into a folder to be deleted; of a link, the link."""
    folder = model.path.parent / HIDDEN_FOLDER / f"{REMOVED}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    parts = expected_shards(model.path) if is_gguf(model.path) else [model.path]
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            part.rename(folder / part.name)
    return folder


def _remove_from_cache(name: str) -> StoredModel:
    for model in _in_hub_cache():
        if model.name == name:
            shutil.rmtree(model.path)
            return model
    raise ModelError(f"there is no model {name!r} in the hub's cache; see `hagane models list`")


def describe(model: Path) -> dict[str, str]:
    """A description of a model, by headings. Raises ModelError for one that cannot be read."""
    config = load_config(model)
    types, parameters = _gguf_types(model) if is_gguf(model) else _safetensors_types(model)
    if config.stored is not None:
        # Several codes are in one element.
        parameters = sum(map(prod, checkpoint_shapes(config).values()))
    facts = {
        "path": str(model),
        "format": "GGUF" if is_gguf(model) else "safetensors",
        "architecture": config.architecture,
        "parameters": f"{parameters / 1e6:.1f} M",
        "size": f"{stored_bytes(model) / 1e6:.1f} MB",
        "tensors": ", ".join(f"{count} {kind}" for kind, count in types.most_common()),
        "context": f"{config.max_position_embeddings} tokens",
        "vocabulary": f"{config.vocab_size} tokens",
    }
    if not config.declared:
        facts["runs"] = "through transformers' own code, slower"
    if config.quantization is not None:
        facts["quantization"] = config.quantization.format
    if config.stored is not None:
        facts["quantization"] = config.stored.summary
    licence = GGUFModel(model).metadata.get("general.license") if is_gguf(model) else None
    return facts | ({"license": str(licence)} if licence else {})


def _gguf_types(path: Path) -> tuple[Counter[str], int]:
    tensors = [info for _, info in GGUFModel(shard_paths(path)[0]).tensors.values()]
    return Counter(info.type.name for info in tensors), sum(prod(info.shape) for info in tensors)


def _safetensors_types(directory: Path) -> tuple[Counter[str], int]:
    from safetensors import SafetensorError, safe_open

    types: Counter[str] = Counter()
    parameters = 0
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
                types.update(part.get_dtype() for part in slices)
                parameters += sum(prod(part.get_shape()) for part in slices)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no safetensors file: {error}") from None
    return types, parameters
