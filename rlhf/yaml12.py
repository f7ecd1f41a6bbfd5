"""YAML that people write: with the numbers of YAML 1.2, which are those of JSON, and every name once."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML as PyYAML reads it, except that 3e-4 is a number, and a name may be given only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"{name} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        value = super().construct_scalar(node)
        # JSON writes a character beyond 16 bits as two.
        return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """What a text of YAML, or of JSON, says.

    Raises:
        yaml.YAMLError: It is no YAML.
        UnicodeDecodeError: A character of two halves lacks one.
    """
    return yaml.load(text, _Loader)
