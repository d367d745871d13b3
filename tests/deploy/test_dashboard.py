"""The dashboard, the alerts and the scrape configuration agree with what a server answers.

The last test runs a real Prometheus, if it is installed (`apt install prometheus`).
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kwise.client import Credentials, RewardClient, RewardServiceError
from tests.http_client import ask, http_port
from tests.servers import Server, running_server, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "kwise.json"
RULES = DEPLOY / "prometheus" / "kwise-alerts.yml"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
TOKEN = "prometheus-0123456789abcdef"
METRIC = re.compile(r"\b(?:kwise|process)_[a-z_]+\b")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panel_expressions() -> list[str]:
    """Return the expression of each query of the dashboard, with values for its variables."""
    found = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())
    ]
    for variable, value in {"$__rate_interval": "1m", "$job": ".*", "$model": ".*"}.items():
        found = [expression.replace(variable, value) for expression in found]
    assert not any("$" in expression for expression in found)
    return found


def alert_expressions() -> list[str]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def server(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a token and has answered calls of all kinds."""
    token_file = tmp_path_factory.mktemp("tokens") / "tokens"
    token_file.write_text(f"prometheus:{TOKEN}\n")
    options = ["--http-port", "0", "--token-file", str(token_file)]
    options += ["--max-tokens", "64", "--overlong", "drop-turns"]
    with running_server(tiny_artifact, *options) as running:
        send_load(running)
        yield running


def send_load(server: Server) -> None:
    """Send groups that are computed, cached, truncated and refused."""
    roles = ["user", "assistant"] * 3 + ["user"]
    long = [{"role": role, "content": "one two three " * 5} for role in roles[:-1]]
    long.append({"role": roles[-1], "content": "And?"})
    with RewardClient(server.address, credentials=Credentials(token=TOKEN)) as client:
        for number in (1, 2, 3, 1):
            client.score(f"Question {number}?", ["Yes.", "No, never. " * number, "<|im_end|>"])
        scored = client.score(long, ["So."])
        assert scored.rewards[0].dropped_tokens  # type: ignore[union-attr]
        with pytest.raises(RewardServiceError):
            client.score("too long " * 100, ["So."])


def scrape(server: Server) -> str:
    reply = ask(http_port(server), "GET", "/metrics", authorization=f"Bearer {TOKEN}")
    return reply.body.decode()


def test_each_metric_of_the_dashboard_and_the_alerts_is_scraped(server: Server) -> None:
    scraped = {
        sample.name
        for family in text_string_to_metric_families(scrape(server))
        for sample in family.samples
    }
    variables = [variable.get("definition", "") for variable in dashboard()["templating"]["list"]]
    queries = [str(variable["query"]) for variable in dashboard()["templating"]["list"]]
    used = {
        name
        for expression in (*panel_expressions(), *alert_expressions(), *variables, *queries)
        for name in METRIC.findall(expression)
    }
    assert len(used) > 30
    assert used - scraped == set()


def test_panels_have_a_place_and_a_query_each() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels overlap"
    assert max(x for x, _ in cells) == 23
    for panel in panels:
        assert panel["title"]
        assert panel["type"] == "row" or panel["targets"]


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [("check", "config", CONFIG), ("check", "rules", RULES)],
    ids=["config", "rules"],
)
def test_promtool_accepts_the_files(command: tuple[Any, ...]) -> None:
    checked = subprocess.run(
        ["promtool", *command], capture_output=True, text=True, check=False, cwd=CONFIG.parent
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_each_alert_fires_for_what_it_is_about_and_for_nothing_else() -> None:
    tests = RULES.with_name("kwise-alerts.test.yml")
    checked = subprocess.run(
        ["promtool", "test", "rules", tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=tests.parent,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    described = tests.read_text(encoding="utf-8")
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        assert described.count(rule["alert"]) >= 2, "one test that it fires, one that it does not"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> Any:
        """Return the data of a reply of its HTTP API, and fail if it is an error."""
        reply = json.loads(ask(self._port, "GET", f"/api/v1/{path}").body)
        assert reply["status"] == "success", (path, reply)
        return reply["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the samples of an expression at this moment."""
        result: list[Any] = self.get(f"query?query={quote(expression)}")["result"]
        return result

    def has_samples(self, expression: str) -> bool:
        """Return whether an expression has samples at this moment."""
        return bool(self.query(expression))


@contextmanager
def running_prometheus(directory: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run Prometheus with a configuration, on a free port, and stop it at the end."""
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command += ["--web.listen-address=127.0.0.1:0"]
    log = directory / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=directory, stderr=stream, stdout=stream)
    said = re.compile(r'msg="Listening on" address="?127\.0\.0\.1:(\d+)')
    try:
        wait_until(lambda: process.poll() is not None or said.search(log.read_text()) is not None)
        found = said.search(log.read_text())
        assert found is not None, log.read_text()
        port = int(found[1])
        wait_until(lambda: ask(port, "GET", "/-/ready").status == 200)
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_prometheus_evaluates_each_expression_over_real_load(
    server: Server, tmp_path: Path
) -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    (tmp_path / "token").write_text(TOKEN)
    (scraping,) = config["scrape_configs"]
    scraping["authorization"] = {"credentials_file": str(tmp_path / "token")}
    scraping["static_configs"] = [{"targets": [f"127.0.0.1:{http_port(server)}"]}]
    with running_prometheus(tmp_path, config) as prometheus:
        wait_until(lambda: prometheus.query('up{job="kwise"} == 1') != [])
        send_load(server)
        for expression in panel_expressions():
            wait_until(partial(prometheus.has_samples, expression))
        for expression in alert_expressions():
            prometheus.query(expression)
        wait_until(
            lambda: all(
                rule["health"] == "ok"
                for group in prometheus.get("rules")["groups"]
                for rule in group["rules"]
            )
        )
        (cached,) = prometheus.query('kwise_groups_total{result="cached"}')
        (truncated,) = prometheus.query("kwise_truncated_sequences_total")
        assert float(cached["value"][1]) >= 1
        assert float(truncated["value"][1]) == 1
