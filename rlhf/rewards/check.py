"""What can be said of a grader without running it, before anything expensive starts."""

import ast
import os

from rlhf.errors import ConfigError
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.functions import read_source


def check_grader(config: RewardFunction) -> None:
    """See whether files of functions can be read, are Python, and have what they are to have.

    What a function needs may be installed in the trainer's image alone, so that nothing is run or imported here.

    Raises:
        ConfigError: A file is not there or not Python, or has no such function.
    """
    for part in config.parts:
        check_grader(part)
    if not config.is_file:
        return
    if not config.source and "://" not in config.place:
        if not os.path.isfile(config.place):
            raise ConfigError(
                f"{config.words}: there is no file {os.path.abspath(config.place)} here; correct the path, or give a "
                "URI that the stages can read, such as gs://bucket/grader.py"
            )
        with open(config.place, "rb") as file:
            text = file.read()
    else:
        text = read_source(config).encode()
    name = config.function.rpartition(":")[2]
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{config.words}: is not Python ({getattr(error, 'msg', error)}{line}); correct it") from None
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    # A name may be imported or assigned as well.
    others = {name for node in body for name in _names(node)}
    if name not in functions and name not in others and "*" not in others:
        raise ConfigError(
            f"{config.words}: there is no {name} in it, which has {', '.join(functions) or 'no functions'}; correct it"
        )


def _names(node: ast.AST) -> list[str]:
    """What a statement at the top of a file gives names to; those in conditions and the like too."""
    found = []
    for each in ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ():
        if isinstance(each, ast.alias):
            found.append((each.asname or each.name).partition(".")[0])
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.append(each.id)
        elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(each.name)
    return [*found, node.name] if isinstance(node, ast.ClassDef) else found
