"""Several adapters beside one model: each row decodes as the model into which its adapter was merged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import StubTokenizer, tiny_model, trace_of

from unmask import LLM, load_model
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.threads import run_in_thread
from unmask.errors import ConfigError, ModelError
from unmask.models import read_config
from unmask.models.adapters import AdaptedLinear, AdapterBank, Selection, _Current
from unmask.models.families import llada
from unmask.models.lora import LowRank, adapters, add_adapters, save_adapters
from unmask.models.registry import find_family

TARGETS = {"all": ("q", "k", "v", "o", "gate", "up", "down"), "few": ("q", "down")}
NAMES = (None, "all", "few")
PROMPTS = [[5, 17, 42], [3, 3, 9, 20, 31], [11]]
METHODS = [
    ("llada", "vanilla", "none", {"steps": 4}),
    ("llada", "pc_sampler", "none", {"steps": 2}),
    ("llada", "wino", "prefix", {"block_length": 4}),
    ("llada", "vanilla", "none", {"steps": 4, "temperature": 0.7, "cfg_scale": 0.5}),
    ("dream", "threshold", "dual", {"threshold": 0.3, "block_length": 4}),
    ("dream", "threshold", "dllm(kp=3, kr=2)", {"threshold": 0.3}),
]


def write_adapter(model_folder, folder, rank, targets, seed, size=0.2):
    """An adapter of PEFT that changes the answers of a checkpoint."""
    model = load_model(model_folder, "float32", "cpu")
    add_adapters(model, rank, 2.0 * rank, targets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.b.copy_(torch.randn(adapter.b.shape, generator=generator) * size)
    names = find_family(read_config(model_folder), model_folder).names
    save_adapters(model, names, folder, str(model_folder))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, parity_folder):
    """By family: two adapters, a model with both, and the plain and the merged models by name."""
    root, cache = tmp_path_factory.mktemp("adapters"), {}

    def load(folder, **options):
        return LLM(folder, dtype="float32", device="cpu", tokenizer=StubTokenizer(), **options)

    def get(family):
        if family not in cache:
            base = parity_folder(family)
            folders = {
                name: write_adapter(base, root / family / name, 5 - i, TARGETS[name], i)
                for i, name in enumerate(NAMES[1:], 1)
            }
            merged = {name: load(base, lora=folder) for name, folder in folders.items()}
            cache[family] = folders, load(base, adapters=folders), {None: load(base), **merged}
        return cache[family]

    return get


def decoded(llm, adapter_of, method):
    """The traces of prompts in one batch, each with its adapter."""
    decoder, cache, knobs = method
    requests = [
        llm.request(prompt, decoder, cache, gen_length=8, seed=i, adapter=adapter_of[i], **knobs)
        for i, prompt in enumerate(PROMPTS)
    ]
    return [trace_of(llm.output(done, True)) for done in llm.run(requests, 32)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(m[:3]))
def test_each_row_decodes_as_its_merged_model_whatever_its_neighbors_use(loaded, method):
    _, llm, alone = loaded(method[0])
    expected = {name: decoded(alone[name], [None] * 3, method[1:]) for name in NAMES}
    assert expected[None] != expected["all"] != expected["few"] != expected[None]
    for names in ((None, "all", "few"), ("all", "few", "all")):
        assert decoded(llm, names, method[1:]) == [
            expected[name][i] for i, name in enumerate(names)
        ]


def test_the_background_frequencies_are_those_of_the_adapter(loaded):
    _, llm, alone = loaded("llada")
    for name in NAMES:
        expected = torch.from_numpy(alone[name].background())
        ours = torch.from_numpy(llm.background(name))
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
    assert (llm.background("all") != llm.background()).any()


def served(llm, items, **config):
    """The traces and numbers of cached positions of (prompt, adapter), one after another."""
    results = []
    with Engine(llm, EngineConfig(**config)) as engine:
        for prompt, adapter in items:
            request = llm.request(
                prompt, "threshold", "block_causal", gen_length=8, adapter=adapter
            )
            updates = []
            handle = engine.submit(request, updates.append)
            with handle.wake:
                handle.wake.wait_for(lambda u=updates: u and u[-1].output is not None, 20)
            results.append((trace_of(updates[-1].output), updates[-1].num_cached))
    return results


def test_adapters_share_no_cached_prefix(loaded):
    _, llm, alone = loaded("sdar")
    prompt = list(range(1, 41))
    order = [None, "all", "few", "all", None]
    results = served(llm, [(prompt, name) for name in order])
    assert [cached > 0 for _, cached in results] == [False, False, False, True, True]
    for (trace, _), name in zip(results, order, strict=True):
        assert trace == served(alone[name], [(prompt, None)])[0][0]


def test_a_row_keeps_its_own_columns_by_hand():
    linear = torch.nn.Linear(2, 2, bias=False)
    current = _Current()
    parts = [
        LowRank(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 2.0),
        None,
        LowRank(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.eye(2), 1.0),
    ]
    adapted = AdaptedLinear(linear, parts, current, linear.weight)
    x = torch.tensor([[3.0, 5.0]] * 4)
    rows = torch.tensor([0, -1, 2, 1])
    current.selection = Selection(0, 2, rows)
    added = adapted(x) - linear(x)
    expected = torch.tensor([[6.0, 0.0], [0.0, 0.0], [5.0, 8.0], [0.0, 0.0]])
    torch.testing.assert_close(added, expected)
    current.selection = Selection(1, 1, None)
    assert torch.equal(adapted(x), linear(x))


def test_a_selection_holds_for_its_thread_only_and_ends(loaded):
    _, llm, alone = loaded("llada")
    ids = torch.arange(1, 9)[None]
    plain, adapted = alone[None].model(ids), alone["all"].model(ids)
    with llm.adapters.only("all"):
        torch.testing.assert_close(llm.model(ids), adapted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(run_in_thread(lambda: llm.model(ids)), plain)
        with llm.adapters.only(None):
            torch.testing.assert_close(llm.model(ids), plain)
    torch.testing.assert_close(llm.model(ids), plain)


def test_python_chooses_an_adapter_in_every_call(loaded):
    _, llm, alone = loaded("dream")
    for name in ("all", "few"):
        ids = {"gen_length": 4, "return_trace": True}
        ours = llm.generate([PROMPTS[0]], adapter=name, **ids)[0]
        assert trace_of(ours) == trace_of(alone[name].generate([PROMPTS[0]], **ids)[0])
        pieces = llm.stream(PROMPTS[0], gen_length=4, adapter=name)
        assert "".join(pieces) == ours.text
        filled = llm.infill(["1 2 ", 3, " 4"], adapter=name).text
        assert filled == alone[name].infill(["1 2 ", 3, " 4"]).text


@pytest.fixture
def broken(loaded, tmp_path):
    """A copy of an adapter of LLaDA with other values in its configuration or tensors."""
    folders, _, _ = loaded("llada")

    def change(config=(), tensors=None):
        folder = tmp_path / "broken"
        shutil.copytree(folders["all"], folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **dict(config)}))
        if tensors is not None:
            path = folder / "adapter_model.safetensors"
            save_file(tensors(load_file(path)), path)
        return folder

    return change


def first_key(tensors, end):
    return next(key for key in tensors if key.endswith(end))


def without_b(tensors):
    return {k: v for k, v in tensors.items() if k != first_key(tensors, "lora_B.weight")}


def with_nan(tensors):
    tensors[first_key(tensors, "lora_A.weight")][0, 0] = float("nan")
    return tensors


def flat(tensors):
    key = first_key(tensors, "lora_A.weight")
    return {**tensors, key: tensors[key][0].contiguous()}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"r": 8}, None, r"of another size than the model: .* where r=8"),
        ({"r": 0}, None, "r=0 must be 1 or more"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "has changed the base's weights"),
        ({"alora_invocation_tokens": [1]}, None, "alora_invocation_tokens of .* is not supported"),
        ({}, without_b, "has one of lora_A and lora_B"),
        ({}, with_nan, "is not finite"),
        ({}, flat, "of another size"),
    ],
)
def test_an_adapter_that_would_be_read_wrongly_is_refused(broken, loaded, config, tensors, message):
    model = loaded("llada")[2][None].model
    with pytest.raises(ModelError, match=message):
        AdapterBank(model, llada.NAMES, {"x": broken(config, tensors)}, 64)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())


def test_limits_names_and_bases_are_checked(loaded, parity_folder, tmp_path):
    folders, llm, alone = loaded("llada")
    base = parity_folder("llada")

    def load(adapters, **options):
        return LLM(base, device="cpu", tokenizer=StubTokenizer(), adapters=adapters, **options)

    with pytest.raises(ConfigError, match="2 adapters are more than max_loras=1; raise it"):
        load(folders, max_loras=1)
    with pytest.raises(ModelError, match="r=4 is more than max_lora_rank=3; raise it"):
        load({"all": folders["all"]}, max_lora_rank=3)
    with pytest.raises(ModelError, match="fit no matrix of the model"):
        load({"other": loaded("dream")[0]["all"]})
    with pytest.raises(ConfigError, match="'nowhere' is no folder"):
        load({"x": "nowhere"})
    with pytest.raises(ModelError, match="no adapter of PEFT can be read"):
        load({"x": tmp_path})
    with pytest.raises(ConfigError, match="a name is printable text"):
        load({" ": folders["all"]})
    with pytest.raises(ConfigError, match="not for tensor_parallel_size > 1"):
        load(folders, tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="no effect on a loaded model"):
        LLM(tiny_model(), adapters=folders)
    with pytest.raises(ConfigError, match="unknown adapter 'fev': did you mean 'few'"):
        llm.generate([[1]], adapter="fev")
    with pytest.raises(ConfigError, match="unknown adapter 'few': none are allowed"):
        alone[None].generate([[1]], adapter="few")
    with pytest.raises(ConfigError, match="weights of a model with adapters"):
        llm.read_weights(base)


def test_adapters_lie_beside_quantized_weights(loaded, parity_folder):
    pytest.importorskip("torchao")
    folders, llm, _ = loaded("dream")
    small = LLM(
        parity_folder("dream"), dtype="float32", device="cpu", tokenizer=StubTokenizer(),
        adapters=folders, quantization="int8",
    )  # fmt: skip
    ids = torch.arange(1, 9)[None]
    with small.adapters.only("all"), llm.adapters.only("all"), torch.no_grad():
        near = (small.model(ids) - llm.model(ids)).abs().max()
    with torch.no_grad():
        far = (small.model(ids) - llm.model(ids)).abs().max()
        with small.adapters.only("all"):
            changed = (small.model(ids) - llm.model(ids)).abs().max()
    assert near < changed / 4
    assert far < changed / 4
