"""Model families of users: a file, a module, an installed entry point; what is wrong with one is said."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import unmask
from unmask import own_code
from unmask.cli.main import main
from unmask.cli.plugins import split_plugins
from unmask.errors import ConfigError, ModelError, PluginError
from unmask.models import read_spec
from unmask.models.registry import OWN
from unmask.models.transformer import Transformer
from unmask.models.weights import save_weights

PAGE = Path(__file__).parents[1] / "docs/how-to/add-a-family.md"
SOURCE = re.search(r"```python\n(\"\"\"Orchid.*?)```", PAGE.read_text(), re.DOTALL)[1]
SOURCE = SOURCE.replace("Orchid", "Violet").replace("orchid", "violet")
"""The page's family under another name: who follows the page has that one in the package."""
CONFIG = {
    "architectures": ["VioletForMaskedDiffusion"],
    "model_type": "violet",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mask_token_id": 62,
}


@pytest.fixture(autouse=True)
def _clean():
    OWN.added.clear()
    yield
    OWN.added.clear()
    sys.modules.pop("violet_package", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint of an imagined family, and the file that describes it."""
    root = tmp_path_factory.mktemp("violet")
    (root / "violet.py").write_text(SOURCE)
    module = own_code.load_module(str(root / "violet.py"))
    torch.manual_seed(0)
    network = Transformer(module.spec_from_config(CONFIG))
    (root / "checkpoint").mkdir()
    (root / "checkpoint" / "config.json").write_text(json.dumps(CONFIG))
    save_weights(network, root / "checkpoint/model.safetensors", module.NAMES, torch.float32)
    return root, network.eval()


def test_a_file_makes_its_checkpoints_loadable(made):
    root, network = made
    with pytest.raises(ModelError, match="VioletForMaskedDiffusion"):
        unmask.load_model(root / "checkpoint")
    unmask.add_family(root / "violet.py")
    unmask.add_family(str(root / "violet.py"))  # again, as a notebook does
    llm = unmask.LLM(root / "checkpoint", dtype="float32", device="cpu")
    assert llm.spec.family == "violet"
    ids = torch.tensor([[1, 2, 62, 62]])
    assert torch.equal(llm.model(ids), network(ids))
    assert len(llm.generate([[1, 2, 3]], "threshold", gen_length=4)[0].canvas_ids) == 7


def test_a_config_without_classes_is_known_by_its_type(made, tmp_path):
    unmask.add_family(made[0] / "violet.py")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architectures": []}))
    assert read_spec(tmp_path).family == "violet"


@pytest.mark.parametrize("words", [("--plugin", "{}"), ("--plugin={}",)])
def test_every_command_takes_the_file(made, capsys, words):
    root = made[0]
    folder = str(root / "checkpoint")
    assert main(["inspect", folder]) == 2
    assert "VioletForMaskedDiffusion" in capsys.readouterr().err
    flags = [word.format(root / "violet.py") for word in words]
    assert main(["inspect", folder, *flags]) == 0
    assert "violet" in capsys.readouterr().out


def test_every_command_takes_a_decoder_in_the_same_way(tmp_path, capsys):
    (tmp_path / "soft.py").write_text(
        "from unmask.decoders.threshold import Threshold\n"
        "class Soft(Threshold):\n    'A decoder.'\n"
    )
    assert main(["decoders", "soft", f"--plugin={tmp_path / 'soft.py'}"]) == 0
    assert "soft: A decoder." in capsys.readouterr().out


def test_an_installed_package_needs_no_call(made, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "violet_package", own_code.load_module(str(made[0] / "violet.py"))
    )
    points = [
        EntryPoint("broken", "no_such_package_of_ours", "unmask.families"),
        EntryPoint("violet", "violet_package", "unmask.families"),
    ]
    monkeypatch.setattr(
        own_code, "entry_points", lambda group: points if group == "unmask.families" else []
    )
    assert read_spec(made[0] / "checkpoint").family == "violet"
    points.pop()
    with pytest.raises(ModelError, match="entry point broken=no_such_package_of_ours cannot be"):
        read_spec(made[0] / "checkpoint")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("MASK = ", "MASKS = "), PluginError, "defines no MASK; a family needs"),
        (('MASK = "<|mask|>"', "MASK = 7"), PluginError, "MASK must be the text"),
        (("NAMES = (", "NAMES = (7,"), PluginError, "NAMES must be a tuple of pairs"),
        (('("VioletForMaskedDiffusion",)', '"Violet"'), PluginError, "a tuple of strings"),
        (("VioletForMaskedDiffusion", "LLaDAModelLM"), ConfigError, "another family reads already"),
    ],
)
def test_a_family_that_cannot_be_used_is_refused(tmp_path, change, error, message):
    (tmp_path / "violet.py").write_text(SOURCE.replace(*change))
    with pytest.raises(error, match=message):
        unmask.add_family(tmp_path / "violet.py")
    assert not OWN.added


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return config['size']", "spec_from_config fails .KeyError: 'size'"),
        ("return 7", "returned 7; return a ModelSpec"),
    ],
)
def test_a_config_that_its_function_fails_on_is_a_plain_error(made, tmp_path, body, message):
    text = SOURCE.partition('    """Build the spec')[0]
    (tmp_path / "violet.py").write_text(f"{text}    {body}\n")
    unmask.add_family(tmp_path / "violet.py")
    with pytest.raises(PluginError, match=message):
        read_spec(made[0] / "checkpoint")


def test_the_flag_is_read_up_to_two_dashes():
    words = ["generate", "--plugin", "a.py", "-m", "x", "--plugin=b.py", "--", "--plugin", "c"]
    assert split_plugins(words) == (
        ["generate", "-m", "x", "--", "--plugin", "c"],
        ["a.py", "b.py"],
    )
    with pytest.raises(ConfigError, match="needs a file"):
        split_plugins(["generate", "--plugin"])
