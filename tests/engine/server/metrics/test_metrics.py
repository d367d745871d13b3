"""A scrape has the numbers of GetModel, and names as promtool and docs/monitoring.md have them."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from kwise.client import RewardClient
from kwise.engine.server.metrics.table import METRICS
from kwise.protos.kwise.v1 import reward_pb2 as pb
from tests.engine.server.http.conftest import HttpServer, http
from tests.requests import score_request

__all__ = ["http"]

GROUP = {"prompt": pb.Prompt(text="Why?"), "responses": [pb.Response(text="So.")]}
PAGE = Path(__file__).parents[4] / "docs" / "monitoring.md"

# The counters of GetModel that a scrape has under another name, with labels, or as a sum.
NAMES = {
    "model_passes": "kwise_batch_rows_count",
    "sequences": "kwise_batch_sequences_sum",
    "joined": "kwise_joined_rewards_total",
    "abandoned": "kwise_abandoned_sequences_total",
    "busy_s": "kwise_busy_seconds_total",
    "idle_with_work_s": "kwise_idle_with_work_seconds_total",
    "cached_groups": 'kwise_groups_total{result="cached"}',
    "failed_groups": 'kwise_groups_total{result="failed"}',
    "shared_hits": 'kwise_shared_cache_lookups_total{result="hit"}',
    "shared_misses": 'kwise_shared_cache_lookups_total{result="miss"}',
    "shared_unanswered": 'kwise_shared_cache_lookups_total{result="unanswered"}',
    "shared_joined": "kwise_shared_cache_joined_total",
    "shared_timeouts": 'kwise_shared_cache_failures_total{reason="timeout"}',
    "shared_errors": 'kwise_shared_cache_failures_total{reason="error"}',
    "shared_rubbish": 'kwise_shared_cache_failures_total{reason="rubbish"}',
    "shared_stored": 'kwise_shared_cache_stores_total{result="stored"}',
    "shared_dropped": 'kwise_shared_cache_stores_total{result="dropped"}',
}


def families(text: str) -> list[Family]:
    return list(text_string_to_metric_families(text))


def scrape(server: HttpServer) -> str:
    reply = server.get("/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return reply.body.decode()


def samples(text: str) -> Mapping[str, float]:
    """Return the values of all samples, by name and labels without the model."""
    found = {}
    for family in families(text):
        for sample in family.samples:
            others = {name: v for name, v in sample.labels.items() if name != "model"}
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(others.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def send_everything(server: HttpServer) -> None:
    """Send a call, a stream and a call that fails, so that every metric has a sample."""
    group = {"prompt": "Which?", "responses": ["A.", "The second."]}
    assert server.post("/v1/rewards", group).status == 200
    assert server.post("/v1/rewards", {"model": "unknown", **group}).status == 404
    request = pb.ScoreStreamRequest(id="1", group=score_request(**GROUP).group)
    assert [reply.id for reply in server.stub.ScoreStream(iter([request]))] == ["1"]


def test_a_scrape_has_the_numbers_of_get_model(http: HttpServer) -> None:
    group = {"prompt": "Why is the sky blue?", "responses": ["Light.", "Air scatters light."]}
    for _ in range(2):
        assert http.post("/v1/rewards", group).status == 200
    assert http.post("/v1/rewards", {"prompt": "p", "responses": []}).status == 400
    with RewardClient(http.server.address) as client:
        info = client.get_model()
    found = samples(scrape(http))
    for name, value in asdict(info.counters).items():
        if name == "answered_groups":
            results = ('{result="cached"}', '{result="computed"}')
            expected = sum(found[f"kwise_groups_total{result}"] for result in results)
        else:
            expected = found[NAMES.get(name, f"kwise_{name}_total")]
        assert expected == pytest.approx(value), name
    assert found["kwise_devices"] == info.num_devices
    assert found["kwise_queue_max_tokens"] == info.max_queue_tokens
    assert found["kwise_pass_duration_seconds_sum"] == pytest.approx(info.counters.busy_s)
    assert found["kwise_batch_rows_sum"] == info.counters.rows
    assert found['kwise_reward_value_bucket{le="+Inf"}'] == info.counters.sequences
    assert found["kwise_cache_entries"] > 0 and found['kwise_prompt_cache_max_bytes{device="0"}']


def test_names_and_types_are_conventional(http: HttpServer) -> None:
    text = scrape(http)
    for family in families(text):
        assert family.documentation and family.type != "unknown", family.name
        assert family.name.startswith(("kwise_", "process_"))
        if family.type == "counter":
            # A gauge or a histogram must not look like a counter, and a counter must.
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith("_total")
    if (promtool := shutil.which("promtool")) is not None:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_metric_of_the_table_is_scraped(http: HttpServer) -> None:
    group = {"prompt": "Which?", "responses": ["A.", "The second."]}
    assert http.post("/v1/rewards", group).status == 200
    scraped = {family.name: family for family in families(scrape(http))}
    for metric in METRICS:
        family = scraped[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind.value, metric.help)
        assert family.samples, metric.name
        for sample in family.samples:
            assert sample.labels["model"] == "tiny"
            assert set(sample.labels) - {"le"} == {"model", *metric.labels}


def row(family: Family) -> str:
    """Return the line of the page's table that describes a metric."""
    name = family.name + ("_total" if family.type == "counter" else "")
    names = {label for sample in family.samples for label in sample.labels} - {"le"}
    labels = f" `{{{', '.join(sorted(names))}}}`" if names else ""
    return f"| `{name}`{labels} | {family.type} | {family.documentation} |"


def test_the_page_describes_every_metric(http: HttpServer) -> None:
    send_everything(http)
    scraped = [row(f) for f in families(scrape(http)) if f.name.startswith("kwise_")]
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `kwise_\w+`.*\|$", page, re.MULTILINE) == scraped


def test_calls_are_counted_by_method_model_and_status(http: HttpServer) -> None:
    score, scored = "kwise.v1.RewardService/ScoreStream", 'protocol="http",status='
    names = [
        f'kwise_requests_total{{method="{score}",protocol="grpc",status="OK"}}',
        f'kwise_streams_total{{method="{score}",protocol="grpc",status="OK"}}',
        f'kwise_requests_total{{method="POST /v1/rewards",{scored}"OK"}}',
        f'kwise_requests_total{{method="POST /v1/rewards",{scored}"NOT_FOUND"}}',
    ]
    before = samples(scrape(http))
    send_everything(http)
    after = samples(scrape(http))
    assert [after[name] - before.get(name, 0) for name in names] == [1, 1, 1, 1]
    assert 'model="unknown"' not in scrape(http)
