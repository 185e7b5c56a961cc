"""Many hosts at once, each host politely: one request at a time, a pause between, robots.txt first.

A host here is a registered domain: `a.example.com` and `www.example.com` share one queue. Every request is a job in
its host's queue, also the next hop of a redirect and a repeated try, so that politeness needs no second mechanism.
robots.txt is asked for once per origin, before its first page (RFC 9309); where it redirects to another host, it is
followed out of turn.
"""

from __future__ import annotations

import email.utils
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin

from pipelines.bodies import Refused, decode_body
from pipelines.http_get import Answer, Failed, Limits, get, origin, spell
from pipelines.robots import MAX_REDIRECTS, Rules, parse_robots, rules_for_status
from pipelines.urls import host, parse, registered_domain

REDIRECTS = frozenset({301, 302, 303, 307, 308})
AGAIN = frozenset({429, 500, 502, 503, 504})
"""Statuses worth another try."""
MAX_ROBOTS = 32 << 20
"""Bytes of a robots.txt beyond which the site counts as unreachable; the parser looks at the first 500 KiB."""
NETWORK = frozenset({"dns", "connection", "timeout", "bad_http"})
"""Failures worth another try."""


@dataclass(frozen=True)
class Manners:
    """product: the robots.txt token. delay_seconds: between the end of a request to a host and the next one.
    max_delay_seconds: the longest Crawl-delay and Retry-After that are honoured. retries: tries after the first."""

    product: str
    delay_seconds: float
    max_delay_seconds: float
    retries: int
    max_redirects: int
    respect_robots: bool
    concurrency: int


@dataclass(frozen=True)
class Job:
    """A link on its way: the URL to request next, the URLs requested before it, tries and requests so far."""

    link: str
    url: str
    hops: tuple[str, ...] = ()
    tries: int = 0
    requests: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a link ended. url: the last one requested; reason "" with the answer where there is a page to store."""

    job: Job
    reason: str
    status: int = 0
    answer: Answer | None = None


@dataclass
class _Host:
    """A host's queue. ready: the monotonic time before which it is left alone."""

    name: str
    jobs: deque[Job] = field(default_factory=deque)
    ready: float = 0.0
    busy: bool = False
    rules: dict[str, Rules | str] = field(default_factory=dict)
    robots_tries: dict[str, int] = field(default_factory=dict)


class Crawl:
    """Fetches jobs and hands each link's outcome to `done`, from many threads, each link once.

    known(url): whether a URL's page is stored already; such a link ends with reason "" and no answer.
    judge(answer): "" if an answer with status 200 is a page to store, else the reason. wanted(fields): whether its
    body is worth reading, by its head.
    """

    def __init__(
        self,
        limits: Limits,
        manners: Manners,
        known: Callable[[str], bool],
        wanted: Callable[[dict[str, str]], bool],
        judge: Callable[[Answer], str],
        done: Callable[[Outcome], None],
    ) -> None:
        self.limits, self.manners = limits, manners
        self.known, self.wanted, self.judge, self.done = known, wanted, judge, done
        self._hosts: dict[str, _Host] = {}
        self._ready: list[tuple[float, int, _Host]] = []
        self._numbers = itertools.count()
        self._condition = threading.Condition()
        self._open = 0
        self._failure: BaseException | None = None

    def run(self, jobs: list[Job]) -> None:
        """Fetch all jobs. Raises what `done` or `judge` raise, after ending the other threads."""
        for job in jobs:
            self._queue(job)
        threads = max(1, min(self.manners.concurrency, len(self._hosts)))
        with ThreadPoolExecutor(threads, "fetch") as pool:
            for future in [pool.submit(self._work) for _ in range(threads)]:
                future.result()

    def _queue(self, job: Job, wait: float = 0.0) -> None:
        name = host_of(job.url)
        with self._condition:
            queue = self._hosts.setdefault(name, _Host(name))
            queue.jobs.append(job)
            queue.ready = max(queue.ready, time.monotonic() + wait) if wait else queue.ready
            self._open += 1
            if not queue.busy and len(queue.jobs) == 1:
                self._offer(queue)

    def _offer(self, queue: _Host) -> None:
        heapq.heappush(self._ready, (queue.ready, next(self._numbers), queue))
        self._condition.notify()

    def _take(self) -> tuple[_Host, Job] | None:
        """The next job whose host may be asked now; None when all links have ended."""
        with self._condition:
            while self._open and self._failure is None:
                wait = self._ready[0][0] - time.monotonic() if self._ready else None
                if wait is not None and wait <= 0:
                    _, _, queue = heapq.heappop(self._ready)
                    queue.busy = True
                    return queue, queue.jobs.popleft()
                self._condition.wait(wait)
            return None

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            queue, job = taken
            try:
                asked = self._step(queue, job)
            except BaseException as error:
                with self._condition:
                    self._failure = error
                    self._condition.notify_all()
                raise
            with self._condition:
                queue.busy = False
                if asked:
                    queue.ready = max(queue.ready, time.monotonic() + self._delay(queue, job))
                if queue.jobs:
                    self._offer(queue)
                self._open -= 1
                if not self._open:
                    self._condition.notify_all()

    def _delay(self, queue: _Host, job: Job) -> float:
        rules = queue.rules.get(_origin(job.url))
        asked = rules.crawl_delay if isinstance(rules, Rules) else 0.0
        return max(self.manners.delay_seconds, min(asked, self.manners.max_delay_seconds))

    def _step(self, queue: _Host, job: Job) -> bool:
        """One job's request and what follows from it; whether its host was asked for a page."""
        if self.known(job.url):
            self.done(Outcome(job, "", 200))
            return False
        refusal = self._ask_robots(queue, job)
        if refusal is not None:
            if refusal:
                self.done(Outcome(job, refusal))
            return False
        job = replace(job, requests=job.requests + 1)
        try:
            answer = get(job.url, self.limits, lambda status, fields: status == 200 and self.wanted(fields))
        except Failed as error:
            if error.reason in NETWORK and job.tries < self.manners.retries:
                self._again(job, 0.0)
            else:
                self.done(Outcome(job, error.reason))
            return True
        if answer.status in REDIRECTS:
            self._redirect(job, answer)
        elif answer.status in AGAIN and job.tries < self.manners.retries:
            self._again(job, self._retry_after(answer))
        elif answer.status == 200:
            self.done(Outcome(job, self.judge(answer), 200, answer))
        else:
            self.done(Outcome(job, f"status_{answer.status}", answer.status))
        return True

    def _again(self, job: Job, wait: float) -> None:
        backoff = self.manners.delay_seconds * 2**job.tries
        wait = min(max(wait, backoff), self.manners.max_delay_seconds)
        self._queue(replace(job, tries=job.tries + 1), wait)

    def _retry_after(self, answer: Answer) -> float:
        """Seconds that a Retry-After field asks for (RFC 9110 §10.2.3); 0 if it says nothing usable."""
        value = answer.fields.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return 0.0

    def _redirect(self, job: Job, answer: Answer) -> None:
        hops = (*job.hops, job.url)
        try:
            url = redirect_target(job.url, answer)
        except Failed as error:
            self.done(Outcome(job, f"redirect_{error.reason}", answer.status))
            return
        if url in hops:
            self.done(Outcome(job, "redirect_loop", answer.status))
        elif len(hops) > self.manners.max_redirects:
            self.done(Outcome(job, "too_many_redirects", answer.status))
        else:
            self._queue(replace(job, url=url, hops=hops, tries=0))

    def _ask_robots(self, queue: _Host, job: Job) -> str | None:
        """None if the job may be fetched now; else the reason why not, "" if it was queued again."""
        if not self.manners.respect_robots:
            return None
        at = _origin(job.url)
        rules = queue.rules.get(at)
        if rules is None:
            rules = self._read_robots(at)
            tries = queue.robots_tries.get(at, 0)
            if isinstance(rules, str) and rules in NETWORK | {"robots_unreachable"} and tries < self.manners.retries:
                queue.robots_tries[at] = tries + 1
                self._queue(job, min(self.manners.delay_seconds * 2**tries, self.manners.max_delay_seconds))
                return ""
            queue.rules[at] = rules
        if isinstance(rules, str):
            return rules
        return None if rules.allows(job.url) else "robots"

    def _read_robots(self, at: str) -> Rules | str:
        """An origin's rules, or the reason why all its pages are refused."""
        url = f"{at}/robots.txt"
        limits = replace(self.limits, max_bytes=MAX_ROBOTS)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer = get(url, limits, lambda status, _: 200 <= status < 300)
                if answer.status not in REDIRECTS:
                    break
                url = redirect_target(url, answer)
            except Failed as error:
                return "robots_unreachable" if error.reason in ("too_large", "bad_url") else error.reason
        rules = rules_for_status(answer.status)
        if rules is not None:
            return rules if rules.allows(f"{at}/") else "robots_unreachable"
        try:
            text, _ = decode_body(answer.body, answer.fields, MAX_ROBOTS)
        except Refused:
            return "robots_unreachable"
        return parse_robots(text, self.manners.product)


def redirect_target(url: str, answer: Answer) -> str:
    """Where an answer redirects to, as `spell` writes it. Raises Failed("bad_url") where it says nothing usable."""
    location = answer.fields.get("location", "")
    if not location:
        raise Failed("bad_url", "no Location")
    try:
        text = location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        text = location
    try:
        return spell(urljoin(url, text))
    except ValueError as error:
        raise Failed("bad_url", str(error)) from None


def _origin(url: str) -> str:
    return origin(parse(url))


def host_of(url: str) -> str:
    """The name whose servers a URL's requests are spread over time for: its registered domain, else its host."""
    name = host(url)
    return registered_domain(name) or name
