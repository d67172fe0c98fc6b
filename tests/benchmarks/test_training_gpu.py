"""The GPU benchmark's whole way, with a tiny U-Net on a CPU; and that its FLOPs are those that are done."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.training_gpu import Bench, main
from tests.benchmarks.training_gpu_report import PARTS, breakdown, part_of, report
from tests.benchmarks.training_steps import FULL, RECIPE, SETTINGS, TINY, Setting, counted, make_case, synthetic

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run leaves."""
    torch.set_num_threads(1)
    torch._dynamo.reset()
    out = tmp_path_factory.mktemp("bench")
    main(["--tiny", "--rounds", "1", "--out", str(out)])
    return out


@pytest.mark.filterwarnings("ignore")
def test_every_setting_has_its_row(folder: Path) -> None:
    numbers = json.loads((folder / "training_gpu_tiny.json").read_text("utf-8"))
    assert set(numbers["rows"]) == {f"2/{one.key}" for one in (RECIPE, *SETTINGS)}
    (table,) = [path.read_text("utf-8") for path in folder.glob("*-training-tiny.md")]
    for setting in SETTINGS:
        row = numbers["rows"][f"2/{setting.key}"]
        assert "failed" not in row and row["images_per_second"] > 0 and row["ratio"] > 0 and row["loss"] > 0
        assert set(row["breakdown"]["parts"]) == set(PARTS)
        assert f"| 2 | {'MoA: ' if setting.kind == 'moa' else ''}{setting.title} |" in table
    assert "plain forward" in table and "250 images/s" in table and "| idle GPU |" in table


def test_the_same_command_again_measures_nothing_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "training_gpu_tiny.json").read_bytes()
    main(["--tiny", "--rounds", "1", "--out", str(folder)])
    assert (folder / "training_gpu_tiny.json").read_bytes() == before
    assert "# Training on a GPU" in capsys.readouterr().out


@pytest.mark.parametrize("setting", [RECIPE, Setting("", "", channels_last=False)], ids=["full", "moa"])
def test_the_flops_are_those_of_a_real_step(setting: Setting) -> None:
    """Counted without doing them, against a counter that watches them done on real numbers."""
    case = make_case(setting, TINY, synthetic(TINY, 3, CPU), CPU)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        assert case.gradients(half=False).isfinite()
    found = counted(TINY)
    assert sum(found[setting.kind].values()) == pytest.approx(counter.get_total_flops() / 3)
    assert found["forward"] < sum(found[setting.kind].values()) <= 3 * found["forward"]


def test_all_settings_take_the_same_step() -> None:
    """None of the eager ones changes what is learned: the same seed, the same loss, the same trained weights."""
    found = []
    for setting in SETTINGS:
        if setting.kind == "moa" and setting.compile == "off":
            case = make_case(setting, TINY, synthetic(TINY, 2, CPU), CPU)
            torch.manual_seed(1)
            found.append([case.step(), *(each.detach() for each in case.module.adapter.parameters())])
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)  # bf16


def test_a_setting_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    """Here MoA's: no block is left where the first two and the last three are left out. The recipe has its figure."""
    bench = Bench(replace(TINY, blocks="middle"), CPU, 1, tmp_path / "found.json", 1.0, flops=counted(TINY))
    bench.measure(2, [one for one in SETTINGS if one.key == "eager"])
    assert bench.rows["2/recipe"]["images_per_second"] > 0
    assert bench.rows["2/eager"]["failed"].startswith("ValueError: no layer recorded a map")
    assert "| ValueError: no layer recorded a map" in report(bench.numbers)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "There is no GPU here: run it on a machine with one, or see it run with --tiny."
    )


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("nvjet_hsh_192x192_64x4_1x2_h_bz_coopB_TNT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32_128x2_tn_align8>", "matmul"),
        ("triton_red_fused_convolution_native_group_norm_silu_12", "elementwise + norm"),
        ("triton_tem_fused_addmm_3", "matmul"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, ...>", "layout + copies"),
        ("void at::native::elementwise_kernel<direct_copy_kernel_cuda>", "layout + copies"),
        ("void at::native::(anonymous)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>", "optimizer"),
        ("void at::native::RowwiseMomentsCUDAKernel<float>", "elementwise + norm"),
    ],
)
def test_kernels_are_told_by_their_names(kernel: str, part: str) -> None:
    assert part_of(kernel) == part


def test_time_in_which_nothing_runs_is_idle() -> None:
    def event(name: str, start: float, end: float, device: str = "DeviceType.CUDA", note: bool = False) -> Any:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=note)

    found = breakdown(
        [
            event("flash_fwd", 1000, 3000),
            event("nvjet", 2000, 4000),
            event("memcpy", 7000, 9000),
            event("cudaLaunchKernel", 0, 9000, "DeviceType.CPU"),
            event("step", 0, 20000, note=True),
        ],
        cuda=True,
        steps=2,
    )
    assert (found["milliseconds"], found["idle"]) == (4.0, 1.5)
    assert found["parts"]["attention"] == 1.0 and sum(found["parts"].values()) == 3.0
    assert breakdown([], True, 1) == {}


def test_full_size_is_stable_diffusion_15() -> None:
    assert (FULL.latent, FULL.tokens, FULL.text, FULL.image) == (64, 77, 768, 768)
