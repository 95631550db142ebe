"""Standard error without the log lines of C++: everything else comes through."""

import os

import pytest

from mmret_tf._machine import cores, cpu_features, quiet_stderr

LOG = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1795839987.407492    8007 partitioner_factory_base.cc:58] Size of sample: 3000\n"
    b"W0000 00:00:1795839995.791126    8034 gmm_utils.cc:1026] Could not normalize centroid.\n"
    b"2026-11-28 04:26:24.852904: E external/local_xla/xla/tsl/cuda/cudart_stub.cc:31] No driver\n"
    b"To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.\n"
)


def test_log_lines_are_dropped_and_other_lines_follow(capfd):
    with quiet_stderr():
        os.write(2, b"one\n" + LOG + b"two, with I0000 in it\n")
        with quiet_stderr():  # as in a second thread
            os.write(2, LOG)
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "one\ntwo, with I0000 in it\n"
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "three\n"


def test_an_error_comes_through_and_so_does_what_was_written_before(capfd):
    with pytest.raises(RuntimeError, match="broken"), quiet_stderr():
        os.write(2, LOG + b"before\n")
        raise RuntimeError("broken")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"


def test_debugging_shows_everything(capfd, monkeypatch):
    monkeypatch.setenv("MMRET_DEBUG", "1")
    with quiet_stderr():
        os.write(2, LOG)
    assert capfd.readouterr().err == LOG.decode()


def test_cores_and_features_are_those_of_this_machine():
    assert 1 <= cores() <= os.cpu_count()
    assert all(feature == feature.lower() for feature in cpu_features())


@pytest.mark.parametrize(("limit", "at_most"), [("1", 1), ("0", 1), ("9999", 9999), ("4,2", 9999)])
def test_the_variable_of_openmp_limits_the_cores(monkeypatch, limit, at_most):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every = cores()
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert cores() == min(every, at_most)
