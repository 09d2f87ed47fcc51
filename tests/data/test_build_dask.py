"""The same store from a Dask cluster as from this machine, by the same code."""

import sys

import pytest

from biofound.errors import DataError, SettingsError
from tests.data.cohort import DeadlySource, build, bytes_of

ADDRESS = "tcp://127.0.0.1:9"  # the discard port: nobody answers


def test_a_scheduler_without_dask_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingsError, match=r"pip install 'biofound\[dask\]'"):
        build(tmp_path, scheduler=ADDRESS)


def local_cluster(workers: int):
    distributed = pytest.importorskip("distributed", reason="needs the extra biofound[dask]")
    dask = pytest.importorskip("dask")
    # Dask gives a task up at the first worker that dies of it, not at the fourth: the test is faster
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        return distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", memory_limit=0
        )


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def empty_cluster():
    with local_cluster(0) as running:
        yield running


def test_a_dask_cluster_gives_the_same_store_byte_for_byte(tmp_path, cluster):
    build(tmp_path / "here")
    results = build(tmp_path / "cluster", scheduler=cluster.scheduler_address)
    assert {result.status for result in results} == {"built"}
    assert bytes_of(tmp_path / "cluster") == bytes_of(tmp_path / "here")


def test_a_scheduler_that_does_not_answer_is_a_clear_error(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("biofound.data.pool.SCHEDULER_TIMEOUT_SECONDS", 1)
    with pytest.raises(SettingsError, match=ADDRESS):
        build(tmp_path, scheduler=ADDRESS)


def test_a_cluster_without_workers_is_a_clear_error(tmp_path, empty_cluster, monkeypatch):
    monkeypatch.setattr("biofound.data.pool.CLUSTER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("biofound.data.pool.POLL_SECONDS", 0.1)
    with pytest.raises(DataError, match=r"0\.2 s"):
        build(tmp_path, scheduler=empty_cluster.scheduler_address)


@pytest.mark.slow
def test_a_case_that_kills_every_dask_worker_costs_itself_and_not_the_run(tmp_path, cluster):
    source = DeadlySource(seed=1, subjects=5, minutes=2.0, artefacts=3.0)
    results = build(tmp_path, source=source, scheduler=cluster.scheduler_address, skip_failed=True)
    assert {result.case_id: result.error for result in results if result.status == "failed"}.keys() == {
        "syn0003_1"
    }
    assert sum(result.windows > 0 for result in results) == 4
    assert not [name for name in bytes_of(tmp_path) if name.endswith(".partial")]
