"""python -m experiments: what there is to run."""

import ast
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


def programs() -> dict[str, str]:
  """{name: the first line of its docstring} of every binary."""
  files = [path for path in HERE.glob('*.py') if path.stem[0] != '_']
  parsed = {path.stem: ast.parse(path.read_text()) for path in sorted(files)}
  line = lambda tree: ast.get_docstring(tree).splitlines()[0]
  return {name: line(tree) for name, tree in parsed.items()}


if __name__ == '__main__':
  status = 2 if {*sys.argv[1:]} - {'--help', '-h'} else 0
  print('python -m experiments.NAME, which takes --help; NAME is one of\n')
  for name, what in programs().items():
    print(f'  {name:22} {what}')
  sys.exit(status)
