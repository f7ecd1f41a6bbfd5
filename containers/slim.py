"""Runs while the image without models is built: drops what no stage uses, and compiles what validation imports.

A module that is not compiled is compiled each time it is imported; all of them compiled would take more room than their
sources.
"""

import importlib
import os
import shutil
import site
import sys
from pathlib import Path

# Under site-packages: where telephone numbers come from; what talks to servers of queries, and to S3 without s3fs;
# second copies of libraries; sources of what is compiled; tests.
UNUSED = (
    "phonenumbers/carrierdata/*",
    "phonenumbers/geodata/*",
    "phonenumbers/tzdata/*",
    "pyarrow/*flight*",
    "pyarrow/*s3*",
    "pyarrow/include",
    "pyarrow/libarrow_python*.so",
    "pyarrow/libarrow_python*.so.*.*",
    "**/*.a",
    "**/*.pxd",
    "**/*.pyx",
    "*/tests",
    "*/*/tests",
)
# Of the descriptions of every service of AWS: object stores, and what signs in to them.
SERVICES = ("s3", "signin", "sso", "sso-oidc", "sts")
IMPORTED = (
    "aiohttp duckdb gcsfs huggingface_hub jinja2 kfp.dsl.executor_main matplotlib.pyplot numpy phonenumbers psutil "
    "py3langid pyarrow.dataset pyarrow.parquet pydantic rensa s3fs tokenizers tqdm xxhash yaml"
)


def main() -> None:
    """Drop, and compile by importing."""
    packages = Path(site.getsitepackages()[0])
    unused = [path for pattern in UNUSED for path in packages.glob(pattern) if path.name != "__init__.py"]
    unused += [path for path in packages.glob("botocore/data/*/") if path.name not in SERVICES]
    for path in unused:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # its folder may have gone before it
    sys.dont_write_bytecode = False
    os.environ["_KFP_RUNTIME"] = "true"  # as kfp starts its executor, which then does without its client
    for name in IMPORTED.split():
        importlib.import_module(name)


if __name__ == "__main__":
    main()
