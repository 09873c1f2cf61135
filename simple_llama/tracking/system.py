"""Samples the machine's load under the names of MLflow's system metrics, which its UI groups.

MLflow's collectors are used without MLflow's monitor. The monitor starts a thread of its own, asks
the store at each sample whether the run is still running, and records nothing for runs shorter than
its interval.
"""

from typing import Any

from simple_llama.tracking.store import import_mlflow


class SystemMetrics:
    """Samples CPU, memory, disk, network and, where nvidia-ml-py is installed, NVIDIA GPUs."""

    def __init__(self) -> None:
        self._monitors: list[Any] | None = None

    def __call__(self) -> dict[str, float]:
        """The load since the previous call ({} at the first), in the unit at the end of each name.

        Never raises: a collector that fails is not used again.
        """
        if self._monitors is None:
            self._monitors = _monitors()
            self._collect()
            return {}
        return self._collect()

    def _collect(self) -> dict[str, float]:
        sample: dict[str, float] = {}
        for monitor in list(self._monitors or []):
            try:
                monitor.collect_metrics()
                sample.update(monitor.aggregate_metrics())
                monitor.clear_metrics()
            except Exception:
                assert self._monitors is not None
                self._monitors.remove(monitor)
        return {f"system/{key}": float(value) for key, value in sample.items()}


def _monitors() -> list[Any]:
    try:
        import_mlflow()
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError:
        return []
    monitors = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(kind())
        except Exception:
            # without a GPU, NVML or permission MLflow raises exceptions of many types
            continue
    return monitors
