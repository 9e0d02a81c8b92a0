"""The README's commands, run one after another as a reader would, and what holds its two screens together."""

import pages

RUN = {  # and the exit codes that they may end with
    "hf-ci scan demo:coop demo:far demo:frame": {1},
    "hf-ci scan ./my-adapter": {1},
    "hf-ci scan org/model --data DATA": {1, 4},  # so few images tell little
    "hf-ci scan org/model --push pr": {1},
    "hf-ci repair org/model --push pr --data DATA": {4},  # labels of drawn pictures cannot be learned
}


def test_every_command_runs(run, hub, hub_home, tmp_path):
    assert RUN.keys() == set(pages.typed(pages.README))
    env = pages.furnish(tmp_path, hub, hub_home)
    for command, (code, said) in zip(RUN, pages.run_all(run, [*RUN], tmp_path, env)):
        assert code in RUN[command], f"{command}: {code}\n{said}"


def test_it_stays_two_screens_with_what_a_reader_looks_for_first():
    text = pages.README.read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    assert "    pip install -c constraints.txt '.[test]' && pytest\n" in text
    assert {"clean", "backdoored", "inconclusive"} <= {row.split(" | ")[0].strip("| ") for row in text.splitlines()}
    linked = {link.partition("#")[0] for link in pages.links(pages.README)}
    missing = [page.name for page in pages.DOCS if f"docs/{page.name}" not in linked and page.name != "index.md"]
    assert not missing, f"the README leads to every page but {missing}"
