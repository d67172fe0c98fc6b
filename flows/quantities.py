"""Bytes, FLOPs, numbers and durations as people read them, to three digits."""


def in_bytes(count: float) -> str:
    """ "512 B", "65.7 kB", "1.59 GB": decimal, as disks and GPUs are sold."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def in_flops(count: float) -> str:
    """ "803 GFLOP", "2.28 TFLOP"."""
    return _scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def in_numbers(count: float) -> str:
    """ "99.5 M"; below a thousand as it is."""
    return _scaled(count, ("", "k", "M", "G")).rstrip()


def duration(seconds: float | None) -> str:
    """ "238 ms", "8.2 s", "12 s", "7 min", "3.5 h"; "?" for None."""
    if seconds is None:
        return "?"
    if 0 < seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s" if seconds < 9.995 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    size, unit = float(count), units[0]
    for unit in units:
        if size < 999.5 or unit == units[-1]:
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == units[0] or size >= 999.5 else f"{size:.3g} {unit}"
