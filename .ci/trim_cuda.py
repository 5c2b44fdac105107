"""Remove from this environment what torch needs on a graphics card alone, and say how much that was.

The wheels of torch on the Python Package Index are built for CUDA and load some of its libraries even where there
is no card; those stay. The compiler for cards (triton), the solvers and the parts of cuDNN are loaded when a card
asks for them, so without one they are only weight.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = ["triton", "cuda-bindings", "nvidia-cusolver"]
FILES = ["nvidia/cudnn/lib/libcudnn_*", "nvidia/*/lib/*.alt.so*", "nvidia/*/lib/libnvperf*"]


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    site = Path(sysconfig.get_path("purelib"))
    before = size(site)
    subprocess.run(
        [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *PACKAGES], check=True
    )
    for pattern in FILES:
        for path in site.glob(pattern):
            path.unlink()
    for cache in site.rglob("__pycache__"):
        shutil.rmtree(cache)
    subprocess.run([sys.executable, "-c", "import timm, torch"], check=True)
    print(f"{before / 1e9:.1f} GB before, {size(site) / 1e9:.1f} GB after")
