"""One service of a cluster on many event loops, one after the other."""

from __future__ import annotations

import asyncio

from support.leaks import check_leaks, run
from support.services import make_service

from benchmarks.rigs.clusters import Cluster


def test_loops_that_end_leave_nothing_of_a_cluster(cluster: Cluster) -> None:
    service = make_service("async", cluster.url)
    check_leaks(service, run)
    asyncio.run(service.aclose())
