"""The README files: their links lead somewhere, and the example in README.md works."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import (
    ALPHABET,
    CONFIGS,
    assert_causal,
    parse,
    random_ids,
    run_in_pieces,
    settings,
    train_small,
    with_random_weights,
)

from lit_gpt_scratch import models
from lit_gpt_scratch.cli import compare, main
from lit_gpt_scratch.cli.recipes import plan
from lit_gpt_scratch.training import LitCharLM

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    list(ROOT.glob("*.md"))
    + [ROOT / ".github" / "CONTRIBUTING.md"]
    + [path for room in ("configs", "notebooks", "tests") for path in (ROOT / room).rglob("*.md")]
)
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_to_a_file(path: Path) -> None:
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_attention_of_the_readme_trains_and_is_causal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the readme's own flags, in place of the attention of the rung `transformer`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code, _] = [code for language, code in CODE.findall(text) if language == "python"]
    (tmp_path / "my_module.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # where the readme says that the module is
    flags = "--model.net.attention my_module.MyAttention"
    assert f"--config transformer {flags}" in text
    cli = train_small(tmp_path, *flags.split(), config=ROOT / "configs" / "transformer.yaml")
    [check, compared] = re.findall(
        "^lit-gpt-scratch (check .*|compare transformer .*)$", text, re.M
    )
    main(check.split())
    options, _ = compare.parse_args(compared.split()[1:])
    variants = compare.make_variants(options.configs, compare.parse_varied(options.vary))
    assert [*variants] == ["FusedAttention", "MyAttention"]
    planned = {k: plan([*v, "--data.corpus=sample"]).settings for k, v in variants.items()}
    assert not compare.find_unequal(planned, ["model.net.attention"])
    net = cli.model.net
    [attention] = [m for m in net.modules() if type(m).__name__ == "MyAttention"]
    size, context = len(cli.model.tokenizer), cli.model.context
    assert_causal(net, size, context)
    net, ids = with_random_weights(net), random_ids(size, 3, context)
    with torch.no_grad():
        cached = run_in_pieces(net, ids, [2, context - 3, 1])
        torch.testing.assert_close(cached, net(ids), atol=1e-5, rtol=0)
    weights = attention.weights(torch.zeros(1, 8, 32))  # equal scores: only the distance counts
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 8))
    assert (weights[0, :, -1].diff() > 0).all(), "nearer positions have larger weights"


def test_the_notebook_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but `compare`, which starts six processes, with smaller sizes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [_, code] = [code for language, code in CODE.findall(text) if language == "python"]
    assert 'lgs.compare("single_head", "multi_head", seeds=3)\n' in code
    lines = [line for line in code.splitlines() if not line.startswith("lgs.compare")]
    small = "max_steps=2, corpus='sample', sample_size=20_000, accelerator='cpu'"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(lines).replace("max_steps=2000", small), names)
    assert names["model"] is names["run"].model


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_table_of_configs_names_the_classes_that_a_config_builds(config: Path) -> None:
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith(f"| [`{config.stem}`]")]
    *_, network, attention, _ = (cell.strip() for cell in line.split("|"))
    net, classes = settings(config).model.net, []
    while net:
        classes.append(net.class_path.rpartition(".")[2])
        arguments = net.get("init_args", {})
        net = arguments.get("net") or arguments.get("attention")
    if attention:
        assert attention == f"`{classes.pop()}`"
    assert network == " of ".join(f"`{name}`" for name in classes)


def test_the_python_of_the_configs_readme_builds_what_its_yaml_builds(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    [code] = [code for language, code in CODE.findall(text) if language == "python"]
    [config] = [code for language, code in CODE.findall(text) if language == "yaml"]
    path = tmp_path / "config.yaml"
    path.write_text(config, encoding="utf-8")
    from_config = parse("--config", str(path)).model

    class Data:
        alphabet, context = ALPHABET, from_config.context

    names = {name: getattr(models, name) for name in models.__all__}
    names |= {"LitCharLM": LitCharLM, "data": Data, "__name__": "my_script"}
    exec(code, names)
    model = names["model"]
    model.load_state_dict(from_config.state_dict())
    ids = random_ids(len(ALPHABET), 3, from_config.context)
    with torch.no_grad():
        assert torch.equal(model(ids), from_config(ids))
