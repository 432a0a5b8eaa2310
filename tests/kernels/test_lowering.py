"""Every kernel as a binary for three GPU generations, built at SANA-1.5's shapes on whatever machine this is.

`python -P tests/kernels/test_lowering.py` prints what docs/research/kernels.md shows.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bestofn.kernels import blockwise_quant as coded  # noqa: E402
from bestofn.kernels import fp8  # noqa: E402
from bestofn.kernels.fused import blockwise_quant as blockwise  # noqa: E402
from bestofn.kernels.fused import cross_attention, gated_depthwise, linear_attention, modulate, rows  # noqa: E402
from bestofn.kernels.fused import fp8 as rowwise  # noqa: E402

ARCHITECTURES = (80, 90, 100)  # A100, H100 and H200, B200
WIDE, FULL, INDEX, CODE, FLOAT8 = "*bf16", "*fp32", "*i64", "*i8", "*fp8e4nv"
N, D, H, K = 1024, 2240, 70, 32  # tokens at 1024 px, width, heads and their channels
CROSS_K, L, FFN = 112, 300, 5600  # channels of a cross-attention head, padded text, hidden width
DECODED = 128  # channels of the decoder's last stage
ROW = rows.row_launch(D)
PRODUCT = {"PRECISION": "tf32x3", "BLOCK_K": K}

# name: kernel, its arguments (pointers by their types), registers of a thread and bytes of shared memory at most.
# Registers are what leaves room for enough programs on a multiprocessor (65,536 registers) to keep its memory busy.
KERNELS = {
    "residual_norm": (
        modulate.residual_norm_kernel,
        dict.fromkeys(("x", "gate", "update", "total", "shift", "scale", "out"), WIDE)
        | {"weight": None, "bias": None, "gate_row": 6 * D, "shift_row": 6 * D, "scale_row": 6 * D}
        | {"N": N, "D": D, "eps": 1e-6, **ROW},
        64,
        1_024,
    ),
    "rms_norm": (
        modulate.rms_norm_kernel,
        dict.fromkeys(("x", "weight", "bias", "residual", "out"), WIDE)
        | {"R": 1024 * 1024, "D": DECODED, "eps": 1e-5, **rows.tile_launch(DECODED)},
        64,
        1_024,
    ),
    "inverse_rms": (
        rows.inverse_rms_kernel,
        {"x": WIDE, "out": FULL, "x_row": 3 * D, "D": D, "eps": 1e-5, **ROW},
        32,
        1_024,
    ),
    "quantize_fp8_rowwise": (
        rowwise.quantize_fp8_rowwise_kernel,
        {"x": WIDE, "codes": FLOAT8, "scales": FULL, "K": FFN}
        | {"GREATEST": fp8.GREATEST, "LEAST_SCALE": fp8.LEAST_SCALE, **rows.row_launch(FFN)},
        48,
        1_024,
    ),
    "state": (
        linear_attention.state_kernel,
        {"key": WIDE, "value": WIDE, "rms": FULL, "weight": WIDE, "state": FULL, "row": 3 * D, "N": N, "K": K}
        | PRODUCT
        | linear_attention.STATE_LAUNCH,
        128,
        32_768,
    ),
    "read_out": (
        linear_attention.read_out_kernel,
        {"query": WIDE, "weight": WIDE, "state": FULL, "out": WIDE, "row": 3 * D, "N": N, "D": D, "K": K}
        | {"EPSILON": 1e-15, **PRODUCT}
        | linear_attention.READ_OUT_LAUNCH,
        104,
        32_768,
    ),
    "gated_depthwise": (
        gated_depthwise.gated_depthwise_kernel,
        {"hidden": WIDE, "weight": WIDE, "bias": WIDE, "out": WIDE, "height": 32, "width": 32, "F": FFN}
        | {"strips": 8, "rows": 32, "FAST": True, **gated_depthwise.LAUNCH},
        128,
        1_024,
    ),
    "cross_attention": (
        cross_attention.cross_attention_kernel,
        dict.fromkeys(("query", "weight", "keys", "values", "bias", "out"), WIDE)
        | {"rms": FULL, "prompts": INDEX, "key_prompt": D * L, "key_head": L * CROSS_K, "key_token": CROSS_K}
        | {"value_prompt": D * L, "value_head": L * CROSS_K, "value_token": CROSS_K, "bias_prompt": L}
        | {"N": N, "L": L, "W": D, "K": CROSS_K, "scale": 0.1, "UNSEEN": cross_attention.UNSEEN}
        | {"PRECISION": "tf32x3", "BLOCK_K": 128, "BLOCK_T": 512, **cross_attention.LAUNCH},
        184,
        65_536,
    ),
    "blockwise": (
        blockwise.blockwise_kernel,
        dict.fromkeys(("x", "scales", "mean", "new_scales"), FULL)
        | {"codes": CODE, "new_codes": CODE}
        | {"n": FFN * D, "beta": 0.9, "LEVELS": coded.LEVELS, "BLOCK": coded.BLOCK, **blockwise.LAUNCH},
        72,
        4_096,
    ),
}

LEAST = {"quantize_fp8_rowwise": 89}  # which architectures have float8

# bytes of registers that may spill: with Triton 3.7 two are parked over a row, none with 3.9
PARKED = {("gated_depthwise", 100): 8}

# registers where one version of Triton takes more than the table allows
GREEDY = {("read_out", 80, "3.8"): 152}


def lower(name: str, architecture: int) -> dict[str, int]:
    """Registers of a thread, bytes of spilled registers and of shared memory of the binary."""
    kernel, arguments, _, _ = KERNELS[name]
    arguments = dict(arguments)
    options = {option: arguments.pop(option) for option in ("num_warps", "num_stages") if option in arguments}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments.pop(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(place,)] = "constexpr", value
            continue
        pointer = isinstance(value, str)
        signature[parameter.name] = value if pointer else "i32" if isinstance(value, int) else "fp32"
        if pointer or (isinstance(value, int) and value % 16 == 0):  # as Triton specialises a launch
            attributes[(place,)] = [["tt.divisibility", 16]]
    assert not arguments, f"the kernel takes no {', '.join(arguments)}"
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", architecture, 32)
    binary = triton.compile(source, target=target, options=options | {"enable_fp_fusion": True})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {what: int(number) for what, number in re.findall(r"\b([A-Z]+):(\d+)", listing)}
    return {
        "registers": used["REG"],
        "spills": used["STACK"] + used["LOCAL"],
        "shared": binary.metadata.shared,
        "float64": binary.asm["ptx"].count(".f64"),
    }


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", KERNELS)
def test_binary_fits_the_multiprocessor(name, architecture):
    if architecture < LEAST.get(name, 0):
        pytest.skip("nobody calls it there")
    _, _, registers, shared = KERNELS[name]
    registers = GREEDY.get((name, architecture, triton.__version__[:3]), registers)
    used = lower(name, architecture)
    assert used["spills"] <= PARKED.get((name, architecture), 0)
    assert used["registers"] <= registers
    assert used["shared"] <= shared
    # Triton computes in float64 with a literal below 2**-126, the least normal float32.
    assert used["float64"] == 0


if __name__ == "__main__":
    for name in KERNELS:
        cells = ({} if sm < LEAST.get(name, 0) else lower(name, sm) for sm in ARCHITECTURES)
        shown = " | ".join(f"{c['registers']} / {c['shared']:,}" if c else "-" for c in cells)
        print(f"| `{name}` | {shown} |")  # noqa: T201
