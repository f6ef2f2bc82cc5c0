"""`dorado env check` over the mistakes that authors make: each gets the one sentence that names it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from author_mistakes import FOUND, PRELUDE, REFUSED
from typer.testing import CliRunner

from rl.cli import app
from rl.config_file import ConfigError
from rl.env_tools.check.run import check

pytestmark = pytest.mark.process

AT_ONCE = 2


def written(folder, name: str, source: str) -> str:
    file = folder / f"{name}.py"
    file.write_text(PRELUDE + "\n\n" + source, encoding="utf-8")
    return f"{file}:Mine"


@pytest.fixture(scope="module")
def reports(tmp_path_factory, request):
    """The reports of all mistakes that are asked for, some at a time."""
    folder = tmp_path_factory.mktemp("mistakes")
    mine = [one for one in request.session.items if one.path == request.path]
    names = [one.callspec.params["name"] for one in mine if "reports" in one.fixturenames]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {
            name: threads.submit(check, written(folder, name, FOUND[name][0]), seconds=5)
            for name in names
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_a_mistake_is_named_in_one_sentence(reports, name):
    _, failing, sentence = FOUND[name]
    report = reports[name].result()
    by_check = {one.check: one for one in report.failures}
    assert failing in by_check, str(report)
    assert sentence in by_check[failing].sentence, str(report)
    assert "\n" not in by_check[failing].sentence


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_an_environment_is_refused_before_anything_is_played(tmp_path, name):
    source, sentence = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        check(written(tmp_path, name, source), seconds=5)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_says_2_to_what_cannot_be_an_environment(tmp_path):
    name = written(tmp_path, "no_sample", REFUSED["no_sample"][0])
    for command in ("check", "play"):
        done = CliRunner().invoke(app, ["env", command, name])
        assert done.exit_code == 2
        assert "Mine has neither sample() nor tasks()" in done.output
        assert "Traceback" not in done.output


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Doubling", "Graded"])
def test_the_environments_without_a_mistake_pass(tmp_path, env):
    report = check(written(tmp_path, env, f"class Mine({env}): pass"), seconds=5)
    assert report.passed, str(report)
