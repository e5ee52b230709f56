"""A tiny checkpoint is what it says: the official form, the same bytes for the same seed, a format others can read."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from m3_worker.chat.conversation import ChatError
from m3_worker.chat.template import ChatTemplate
from m3_worker.config import TinySettings
from m3_worker.model.config import ModelConfig
from m3_worker.tiny import main, write_checkpoint

NS = "]<]minimax[>["
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "city": "Zürich"}}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "m3"
    write_checkpoint(TinySettings(directory=directory, layers=3, hidden=16, experts=2, intermediate=8))
    return directory


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_the_directory_holds_the_files_of_a_released_checkpoint(directory: Path) -> None:
    assert set(hashes(directory)) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    modes = {path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert len(modes) == 1, "weights must be as readable as the rest"


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_checkpoint(TinySettings(directory=tmp_path / name, seed=seed, layers=1, hidden=16))
        written.append(hashes(tmp_path / name))
    assert written[0] == written[1]
    different = {name for name in written[0] if written[0][name] != written[2][name]}
    assert different == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def test_the_index_names_the_shard_of_every_tensor_and_their_size(directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_bytes())
    tensors: dict[str, torch.Tensor] = {}
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        part = load_file(directory / shard)
        assert part.keys() == {name for name, file in index["weight_map"].items() if file == shard}
        tensors |= part
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_tensor_names_are_the_official_ones(directory: Path) -> None:
    names = json.loads((directory / "model.safetensors.index.json").read_bytes())["weight_map"].keys()
    moe = "block_sparse_moe"
    norms = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    attention = [f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    index = [f"self_attn.index_{name}.weight" for name in ("q_proj", "k_proj", "q_norm", "k_norm")]
    mlp = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    dense_layer = [*norms, *attention, *(f"mlp.{name}" for name in mlp)]
    sparse_layer = [
        *norms,
        *attention,
        *index,
        f"{moe}.gate.weight",
        f"{moe}.e_score_correction_bias",
        *(f"{moe}.experts.{expert}.{name}.weight" for expert in range(2) for name in ("w1", "w2", "w3")),
        *(f"{moe}.shared_experts.{name}" for name in mlp),
    ]
    expected = {"language_model.model.embed_tokens.weight", "language_model.model.norm.weight"}
    expected |= {"language_model.lm_head.weight"}
    for layer, layer_names in enumerate((dense_layer, sparse_layer, sparse_layer)):
        expected |= {f"language_model.model.layers.{layer}.{name}" for name in layer_names}
    assert {name for name in names if name.startswith("language_model.")} == expected
    tower = "vision_tower.vision_model"
    attention = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    affine = [f"{tower}.pre_layrnorm", *(f"multi_modal_projector.linear_{n}" for n in (1, 2))]
    affine += [f"patch_merge_mlp.linear_{n}" for n in (1, 2)]
    for layer in range(2):
        parts = [*attention, "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
        affine += [f"{tower}.encoder.layers.{layer}.{part}" for part in parts]
    expected = {f"{tower}.embeddings.patch_embedding.weight"}
    expected |= {f"{name}.{part}" for name in affine for part in ("weight", "bias")}
    assert {name for name in names if not name.startswith("language_model.")} == expected


def test_without_vision_there_is_no_tensor_of_it_and_no_config(tmp_path: Path) -> None:
    write_checkpoint(TinySettings(directory=tmp_path, layers=1, dense_layers=0, hidden=16, vision=False))
    names = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert all(name.startswith("language_model.") for name in names)
    assert ModelConfig.load(tmp_path).vision is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_release_has_in_fp32_is_fp32_and_nothing_is_constant(tmp_path: Path, dtype: Any) -> None:
    write_checkpoint(TinySettings(directory=tmp_path, layers=2, hidden=16, dtype=dtype))
    for shard in tmp_path.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            is_fp32 = name.endswith(("gate.weight", "e_score_correction_bias", "patch_embedding.weight"))
            assert tensor.dtype == (torch.float32 if is_fp32 else getattr(torch, dtype)), name
            assert tensor.float().std() > 0.01, name


def test_a_token_is_a_byte_and_every_text_comes_back(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = "Grüße, 世界 🙂 \n\t  two  spaces\x00"
    assert tokenizer.encode(text, add_special_tokens=False).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode()), skip_special_tokens=False) == text


def test_any_ids_decode_to_valid_text(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == ModelConfig.load(directory).vocab_size
    generator = random.Random(0)
    for _ in range(50):
        ids = [generator.randrange(tokenizer.get_vocab_size()) for _ in range(40)]
        tokenizer.decode(ids, skip_special_tokens=False).encode("utf-8")


def test_special_tokens_are_single_tokens_and_those_that_parsers_read_survive_decoding(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = f"]~!b[]~b]ai\n<mm:think>x</mm:think>{NS}[e~["
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert [token for token in ids if token >= 256] == [266, 256, 267, 268, 269, 257]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"ai\n<mm:think>x</mm:think>{NS}"


def test_generation_stops_at_the_end_of_a_turn(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert ModelConfig.load(directory).eos_token_ids == (tokenizer.token_to_id("[e~["),)


# --- the chat template ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(directory: Path) -> ChatTemplate:
    template = ChatTemplate.load(directory)
    assert template is not None
    return template


def conversation(prompt: str) -> str:
    """What follows the developer turn."""
    return prompt.split("[e~[\n", 2)[2]


def test_a_prompt_is_system_turn_developer_turn_conversation_and_the_start_of_the_answer(
    template: ChatTemplate,
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi & <b>bye</b>"}]
    prompt = template.render(messages, {})
    start = "]~!b[]~b]system\nYou are a small language model with the architecture of MiniMax-M3"
    assert prompt.startswith(start)
    assert "\n\n<thinking_instructions>\nThink first, between <mm:think> and </mm:think>, where" in prompt
    assert prompt.endswith(
        "\n</thinking_instructions>[e~[\n]~b]developer\nBe brief.[e~[\n]~b]user\nHi & <b>bye</b>[e~[\n]~b]ai\n"
    )


def test_a_root_message_replaces_the_text_of_the_system_turn(template: ChatTemplate) -> None:
    prompt = template.render([{"role": "root", "content": "ROOT"}, {"role": "user", "content": "x"}], {})
    assert prompt.startswith("]~!b[]~b]system\nROOT\n\n<thinking_instructions>\n")
    assert "]~b]developer\nYou are a helpful assistant.[e~[\n" in prompt


@pytest.mark.parametrize(
    ("mode", "start"), [("enabled", "<mm:think>"), ("disabled", "</mm:think>"), ("adaptive", ""), (None, "")]
)
def test_the_thinking_mode_opens_the_answer(template: ChatTemplate, mode: str | None, start: str) -> None:
    prompt = template.render([{"role": "user", "content": "x"}], {"thinking_mode": mode})
    assert prompt.endswith(f"]~b]ai\n{start}")
    sentences = {template.render([], {"thinking_mode": other}) for other in ("enabled", "disabled", "adaptive")}
    assert len(sentences) == 3


def test_reasoning_stays_in_the_history_of_every_turn(template: ChatTemplate) -> None:
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "one", "reasoning_content": "hm"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "3"},
        {"role": "assistant", "content": "<mm:think>ah</mm:think>three"},
    ]
    assert conversation(template.render(messages, {})) == (
        "]~b]user\n1[e~[\n]~b]ai\n<mm:think>hm</mm:think>one[e~[\n"
        "]~b]user\n2[e~[\n]~b]ai\n</mm:think>two[e~[\n"
        "]~b]user\n3[e~[\n]~b]ai\n<mm:think>ah</mm:think>three[e~[\n"
        "]~b]ai\n"
    )


def test_a_turn_that_was_generated_is_a_prefix_of_the_next_prompt(template: ChatTemplate) -> None:
    question = {"role": "user", "content": "1"}
    first = template.render([question], {"thinking_mode": "enabled"})
    answer = {"role": "assistant", "content": "one", "reasoning_content": "hm"}
    second = template.render([question, answer, question], {"thinking_mode": "enabled"})
    assert second.startswith(f"{first}hm</mm:think>one[e~[\n")


def test_tools_calls_and_results(template: ChatTemplate) -> None:
    call = {
        "type": "function",
        "function": {
            "name": "weather",
            "arguments": {"city": "A & <B>", "days": [1, 2], "at": {"lat": 1.5, "ok": True, "none": None}, "x": None},
        },
    }
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": [{"type": "text", "text": "rainy"}]},
        {"role": "user", "content": "thanks"},
    ]
    invoke = (
        f'{NS}<invoke name="weather">{NS}<city>A & <B>{NS}</city>'
        f"{NS}<days>{NS}<item>1{NS}</item>{NS}<item>2{NS}</item>{NS}</days>"
        f"{NS}<at>{NS}<lat>1.5{NS}</lat>{NS}<ok>true{NS}</ok>{NS}</at>{NS}</invoke>\n"
    )
    assert conversation(template.render(messages, {})) == (
        "]~b]user\n?[e~[\n"
        f"]~b]ai\n</mm:think>Let me see.{NS}<tool_call>\n{invoke}{invoke}{NS}</tool_call>[e~[\n"
        "]~b]tool\n<response>sunny</response>\n<response>rainy</response>[e~[\n"
        "]~b]user\nthanks[e~[\n"
        "]~b]ai\n"
    )


@pytest.mark.xdist_group("oracles")  # imports transformers
def test_transformers_reads_tokenizer_and_template_and_renders_the_same_prompt(
    directory: Path, template: ChatTemplate
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Grüße"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == template.render(
        messages, {}
    )
    with_tools = tokenizer.apply_chat_template(messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
    line = '<tool>{"name": "weather", "parameters": {"type": "object", "city": "Zürich"}}</tool>\n'
    assert line in with_tools
    ours = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(with_tools, add_special_tokens=False).ids
    assert tokenizer.encode(with_tools, add_special_tokens=False) == ours


@pytest.mark.parametrize(
    ("messages", "variables", "message"),
    [
        ([{"role": "tool", "content": "x"}], {}, "a tool message must follow an assistant message with tool_calls"),
        (
            [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
            {},
            "a message of role system is not possible here",
        ),
        (
            [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}],
            {},
            "content of type audio is not supported: only text, image and video are",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            {},
            "arguments of tool call f must be an object",
        ),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    template: ChatTemplate, messages: list[dict[str, Any]], variables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChatError, match=message):
        template.render(messages, variables)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_writes(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "m3"
    command = [sys.executable, "-m", "m3_worker.tiny", str(target)]
    sizes = ["--layers=3", "--hidden=16", "--experts=2", "--intermediate=8"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{target}: ")
    assert hashes(target) == hashes(directory)


def test_a_directory_that_cannot_be_written_ends_the_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["m3 tiny", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == f"m3 tiny: cannot write to {tmp_path / 'file'}: File exists"
