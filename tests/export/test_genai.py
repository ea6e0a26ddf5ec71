"""What is exported here runs where there is nothing but onnxruntime-genai, in its own loop, to our tokens."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from installations import linked_site, run_in
from toggle_runtime.backends import onnx as backend
from toggle_runtime.records import ModelShape, ModeSpecification

from toggle_edge.bundle import Bundle, build_bundle, unpack
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ExportError
from toggle_edge.export import Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.genai import genai_config
from toggle_edge.export.onnx import export_onnx
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.packing import tokenizer_files
from toggle_edge.structure import WHOLE, Structure

TEXT = "Once upon a time"
NEW = 24
SPECIFICATION = {"optimal": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 0.95, 95.0)}
CHAT = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}{% endfor %}"

GENERATE = """
import json, sys
import onnxruntime_genai as og
folder, text, new, messages = sys.argv[1:]
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
tokenizer.update_options(add_special_tokens="true")  # as transformers does unasked
prompt = tokenizer.encode(text)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt) + int(new), do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
found = {"tokens": [int(token) for token in generator.get_sequence(0)]}
if messages:
    found["chat"] = tokenizer.apply_chat_template(messages)
assert not {"torch", "transformers", "onnx", "toggle_edge"} & set(sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked_site(tmp_path_factory.mktemp("genai") / "site", "onnxruntime-genai")


def generated(site: Path, folder: Path, messages: str = "") -> subprocess.CompletedProcess[str]:
    return run_in([site], GENERATE, folder, TEXT, NEW, messages, cwd=folder.parent)


def bundled(
    model: LanguageModel, skeleton: Skeleton, structure: Structure, folder: Path
) -> tuple[Bundle, ModelShape]:
    """A bundle of the model in mixed formats, and the shape of what is in it."""
    bank, shape = LayerBank(model), model.shape
    texts = ("int4-g32", "int8-g32", "fp16")
    layers = model.remaining(structure)
    formats = {layer.name: Format.parse(texts[index % 3]) for index, layer in enumerate(layers)}
    config = Config.of(formats, structure=structure)
    if (kept := bank.kept(structure)) is not None:
        skeleton, shape = narrowed(skeleton, model.anatomy, structure), narrowed_shape(model.shape, kept)
    artifact = export_onnx(skeleton, bank.compressed(config), folder / "artifact")
    bundle = build_bundle(
        folder / "bundle",
        artifact,
        config=config,
        shape=shape,
        specification=SPECIFICATION,
        default_mode="optimal",
        extra=tokenizer_files(model.folder),
        environment={},
        key=None,
    )
    shutil.rmtree(folder / "artifact")
    return bundle, shape


def ours(folder: Path, shape: ModelShape, prompt: list[int]) -> list[int]:
    """Greedy tokens by our decode loop."""
    opened = backend.open_model(folder, shape, backend.GRAPH, threads=1)
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(backend.cached_logits(opened, prompt, tokens[len(prompt) :])[-1].argmax()))
    return tokens


def endless(skeleton: Skeleton) -> Skeleton:
    """With no end token, so that texts have one length whatever random weights say."""
    settings = json.loads(json.dumps(skeleton.genai))
    del settings["model"]["eos_token_id"]
    return dataclasses.replace(skeleton, genai=settings)


@pytest.mark.parametrize(
    ("kind", "structure"),
    [
        ("tiny", WHOLE),
        ("gpt2", WHOLE),
        ("gpt_neox", WHOLE),
        ("tiny", Structure((0,))),
        ("tiny", Structure(kv_groups=((0, 1),))),
    ],
)
def test_an_unpacked_bundle_generates_our_tokens_with_genai_alone(
    kind: str, structure: Structure, site: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    skeleton = request.getfixturevalue("skeleton") if kind == "tiny" else build_skeleton(model, tmp_path)
    bundle, shape = bundled(model, endless(skeleton), structure, tmp_path)
    unpack(bundle, tmp_path / "unpacked")
    done = generated(site, tmp_path / "unpacked")
    assert done.returncode == 0, done.stderr
    prompt = model.tokenizer.encode(TEXT)
    assert json.loads(done.stdout)["tokens"] == ours(tmp_path / "unpacked", shape, prompt)


def test_a_damaged_weight_is_seen_in_what_genai_generates(
    tiny: LanguageModel, skeleton: Skeleton, site: Path, tmp_path: Path
) -> None:
    bundle, shape = bundled(tiny, endless(skeleton), WHOLE, tmp_path)
    unpack(bundle, tmp_path / "unpacked")
    expected = ours(tmp_path / "unpacked", shape, tiny.tokenizer.encode(TEXT))
    path = tmp_path / "unpacked" / "weights" / "model.embed_tokens.bin"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[::-1])
    assert json.loads(generated(site, tmp_path / "unpacked").stdout)["tokens"] != expected


def test_the_chat_template_comes_along(
    tiny: LanguageModel, skeleton: Skeleton, site: Path, tmp_path: Path
) -> None:
    chatty = dataclasses.replace(tiny, folder=tmp_path / "model")
    shutil.copytree(tiny.folder, chatty.folder)
    (chatty.folder / "chat_template.jinja").write_text(CHAT)
    bundle, _ = bundled(chatty, skeleton, WHOLE, tmp_path)
    unpack(bundle, tmp_path / "unpacked")
    done = generated(site, tmp_path / "unpacked", json.dumps([{"role": "user", "content": "Tell a story."}]))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chat"] == "<user> Tell a story."


def test_sampling_and_end_tokens_are_the_models_own(tiny: LanguageModel, tmp_path: Path) -> None:
    own = dataclasses.replace(tiny, folder=tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [2, 7], "do_sample": true, "top_k": 5}'
    )
    found = genai_config(own)
    assert found["model"]["eos_token_id"] == [2, 7]
    assert found["model"]["pad_token_id"] == 2
    assert (found["search"]["do_sample"], found["search"]["top_k"]) == (True, 5)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ExportError, match="expected a JSON object"):
        genai_config(own)


def test_weights_are_links_and_what_people_edit_are_copies(
    tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    bundle, _ = bundled(tiny, skeleton, WHOLE, tmp_path)
    folder = tmp_path / "unpacked"
    unpack(bundle, folder)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix() for path in paths} == {
        name.partition("/")[2] for name in bundle.manifest.files
    }
    for path in paths:
        assert not path.is_symlink()
        linked = path.stat().st_nlink > 1
        assert linked == (path.parent.name == "weights")
    with pytest.raises(ExportError, match="expected a new folder"):
        unpack(bundle, folder)


def test_unpacking_that_fails_leaves_nothing(tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path) -> None:
    bundle, _ = bundled(tiny, skeleton, WHOLE, tmp_path)
    bundle.blob_path(bundle.manifest.files["artifact/signals.onnx"].sha256).unlink()
    with pytest.raises(ExportError, match="cannot unpack"):
        unpack(bundle, tmp_path / "unpacked")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_numbers_of_the_graph_and_of_its_genai_config_agree(tiny: LanguageModel, skeleton: Skeleton) -> None:
    inputs = {value.name: value for value in skeleton.graph.graph.input}
    decoder = genai_config(tiny)["model"]["decoder"]
    for block in range(decoder["num_hidden_layers"]):
        cache = inputs[decoder["inputs"]["past_key_names"] % block].type.tensor_type.shape.dim
        assert cache[1].dim_value == decoder["num_key_value_heads"]
        assert cache[3].dim_value in (0, decoder["head_size"])  # 0 where the graph leaves it open
    assert {decoder["inputs"]["input_ids"], decoder["inputs"]["attention_mask"]} <= set(inputs)
