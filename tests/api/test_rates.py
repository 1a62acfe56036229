"""Limits on how often somebody may ask."""

from __future__ import annotations

from pathlib import Path

import httpx

from stoplab_api.client import Client
from stoplab_api.rates import GUESSES, MOST_KEYS, Buckets
from support_api import running_api, secret


class Clock:
    """Time as a test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestBuckets:
    def test_a_burst_then_as_fast_as_it_refills(self) -> None:
        clock = Clock()
        buckets = Buckets(2.0, 3, clock)
        assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
        assert buckets.take("a") == 0.5
        clock.now = 0.25
        assert buckets.take("a") == 0.25
        clock.now = 0.5
        assert buckets.take("a") == 0
        assert buckets.take("a") == 0.5

    def test_it_holds_no_more_than_its_burst(self) -> None:
        clock = Clock()
        buckets = Buckets(1.0, 2, clock)
        buckets.take("a")
        clock.now = 1000
        assert [buckets.take("a") for _ in range(3)] == [0, 0, 1]

    def test_keys_do_not_share(self) -> None:
        buckets = Buckets(1.0, 1, Clock())
        assert buckets.take("a") == 0
        assert buckets.take("b") == 0
        assert buckets.take("a") == 1

    def test_a_look_takes_nothing(self) -> None:
        buckets = Buckets(1.0, 1, Clock())
        assert [buckets.wait("a") for _ in range(3)] == [0, 0, 0]
        assert buckets.take("a") == 0
        assert buckets.wait("a") == 1

    def test_zero_is_no_limit(self) -> None:
        buckets = Buckets(0, 1, Clock())
        assert {buckets.take("a") for _ in range(100)} == {0}

    def test_full_ones_are_forgotten(self) -> None:
        clock = Clock()
        buckets = Buckets(1.0, 5, clock)
        for key in range(MOST_KEYS):
            buckets.take(str(key))
        clock.now = 10
        buckets.take("one more")
        assert list(buckets._levels) == ["one more"]


class TestRequests:
    def test_a_token_that_asks_too_often(self, home: Path) -> None:
        with running_api(home, rate_per_s=0.1, rate_burst=2) as api, api.http() as http:
            answers = [http.get("/v1/me") for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            refused = answers[-1]
            assert refused.json()["code"] == "rate-limited"
            assert 1 <= int(refused.headers["Retry-After"]) <= 10
            assert refused.headers["RateLimit-Policy"] == '"default";q=2;w=20'
            assert refused.headers["RateLimit"].startswith('"default";r=0;t=')
            with api.http("bob") as other:
                assert other.get("/v1/me").status_code == 200
            assert httpx.get(f"{api.url}/livez", trust_env=False).status_code == 200

    def test_the_client_waits_as_it_is_told(self, home: Path) -> None:
        with running_api(home, rate_per_s=2, rate_burst=1) as api:
            with Client(api.url, secret("ana")) as client:
                assert {client.me().owner for _ in range(3)} == {"ana"}

    def test_who_guesses_tokens_waits(self, home: Path) -> None:
        with running_api(home) as api, api.http() as good:
            headers = {"Authorization": "Bearer wrong"}
            with httpx.Client(base_url=api.url, headers=headers, trust_env=False) as http:
                answers = [http.get("/v1/me") for _ in range(GUESSES + 3)]
            codes = [answer.status_code for answer in answers]
            assert codes[:GUESSES] == [401] * GUESSES
            assert codes[-1] == 429
            assert good.get("/v1/me").status_code == 200, "who has a token is not kept out by them"

    def test_none_when_switched_off(self, home: Path) -> None:
        with running_api(home, rate_per_s=0) as api:
            headers = {"Authorization": "Bearer wrong"}
            with httpx.Client(base_url=api.url, headers=headers, trust_env=False) as http:
                codes = {http.get("/v1/me").status_code for _ in range(GUESSES + 3)}
        assert codes == {401}
