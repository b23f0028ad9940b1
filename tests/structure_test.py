"""The floors of the house: who may import whom."""

import ast
import pathlib

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[1]
LOWEST = {'base', 'blocks'}
GROUND = {
  'cpu',
  'sampling',
  'unroll',
  'datasets.__init__',
  'checkpoint',
  'gps.lqr',
}
TOP = ('learned_optimizers', '__init__')


def imports(path):
  """Absolute module names that a file imports, lazily or not."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def library():
  """{module: own modules that it imports}, without the package's name."""
  files = sorted((ROOT / 'l2o_jax').rglob('*.py'))
  name = lambda path: '.'.join(
    path.relative_to(ROOT / 'l2o_jax').with_suffix('').parts
  )
  own = {name(path) for path in files}
  return {
    name(path): {
      module.removeprefix('l2o_jax.')
      for module in imports(path)
      if module.removeprefix('l2o_jax.') in own
    }
    for path in files
  }


class StructureTest(absltest.TestCase):
  def test_floors(self):
    for module, used in library().items():
      if module in LOWEST:
        self.assertEmpty(used, module)
      if module in GROUND:
        self.assertEmpty(used - LOWEST, module)
      if module not in TOP:
        self.assertEmpty(used & set(TOP), module)
      if module.startswith('optimizees'):
        self.assertLessEqual(used, {'base', 'sampling'}, module)

  def test_no_cycle(self):
    graph, done = library(), set()

    def visit(module, path):
      self.assertNotIn(module, path, 'import cycle')
      if module not in done:
        for used in graph[module]:
          visit(used, path + (module,))
        done.add(module)

    for module in graph:
      visit(module, ())

  def test_what_only_some_may_import(self):
    for path in (ROOT / 'l2o_jax').rglob('*.py'):
      for module in imports(path):
        top = module.split('.')[0]
        self.assertNotIn(
          top,
          ('experiments', 'tests', 'absl', 'matplotlib', 'tensorflow', 'tqdm'),
          str(path),
        )
        if top == 'tensorflow_datasets':
          self.assertEqual(path.name, '__init__.py')


if __name__ == '__main__':
  absltest.main()
