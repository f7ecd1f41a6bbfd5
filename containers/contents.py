"""What the images hold: `python -m containers.contents sbom|audit|licences`, or `make sbom audit licences`.

The list of parts (CycloneDX) and the known vulnerabilities are read from the locks, which name every Python package of
the images by hash; licences, and what the base brought, from an image that is built.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from components.images import ImageError, local_images
from containers import engine
from containers.build import default_tag, git
from containers.lock import LOCKS

OUT = Path("build/containers")

# Runs in the image: {"python": {name: [version, licence]}, "base": {name: version}}.
_LIST = """
import importlib.metadata, json, re
found = {}
for each in importlib.metadata.distributions():
    about = each.metadata
    classes = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = about.get("License-Expression") or "; ".join(classes)
    text = about.get("License") or ""  # may be the whole text
    found[about["Name"]] = [about["Version"], stated or text[:60].partition("\\n")[0] or "not stated"]
try:
    status = open("/var/lib/dpkg/status", encoding="utf-8").read()
except OSError:
    status = ""
base = dict(re.findall(r"^Package: (.+?)$.*?^Version: (.+?)$", status, re.M | re.S))
print(json.dumps({"python": found, "base": base}))
"""


def main() -> int:
    """Write and show one of the three.

    Returns:
        Exit status: 0; of `audit`, pip-audit's, which is 1 where a vulnerability is known or a package cannot be looked
        up; 2 after one line of what is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m containers.contents", description=__doc__)
    parser.add_argument("what", choices=("sbom", "audit", "licences"))
    parser.add_argument(
        "--torch", default="cuda", choices=("cpu", "cuda"), help="build of torch (default: %(default)s)"
    )
    parser.add_argument("--registry", default="")
    parser.add_argument("--tag", default="", help="default: the commit")
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if given.what == "licences":
        try:
            tag = given.tag or default_tag(dirty=git("status", "--porcelain") != "")
            return licences(local_images(given.registry, tag)["ppo_trainer"])
        except (ImageError, engine.EngineError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    locked = OUT / f"locked-{given.torch}.txt"
    text = "".join(sorted(lines(given.torch)))
    if given.what == "sbom":
        locked.write_text(text, encoding="utf-8")
        written = OUT / "sbom.json"
        print(written)
        return _tool("cyclonedx_py", "requirements", str(locked), "--of", "JSON", "--output-file", str(written))
    # Vulnerabilities are known by version, whatever the build. Strict: what cannot be looked up has not been audited.
    locked.write_text(text.replace("+cpu", ""), encoding="utf-8")
    options = ["--disable-pip", "--require-hashes", "--strict", "--progress-spinner", "off"]
    return _tool("pip_audit", "--requirement", str(locked), *options)


def _tool(module: str, *arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode


def lines(torch: str) -> list[str]:
    """Every line of the locks that an image with this build of torch is made from."""
    names = ("build", "light", f"torch-{torch}", "models")
    return [
        line
        for name in names
        for line in (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        if not line.startswith("#")
    ]


def licences(image: str) -> int:
    """Write `licences.json`, and show how many packages are under which licence."""
    found = json.loads(engine.run("run", "--rm", "--network", "none", image, "python", "-c", _LIST))
    (OUT / "licences.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    by_licence: dict[str, list[str]] = {}
    for name, (_, licence) in found["python"].items():
        by_licence.setdefault(licence, []).append(name)
    for licence, names in sorted(by_licence.items(), key=lambda each: (-len(each[1]), each[0])):
        print(f"{len(names):4} {licence}: {', '.join(sorted(names, key=str.lower))}")
    print(f"{len(found['base'])} packages of the base's system; all of it: {OUT / 'licences.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
