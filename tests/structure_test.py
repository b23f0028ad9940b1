"""The floors of the house: who may import whom."""

import ast
import importlib
import pathlib
import types

from absl.testing import absltest

import l2o_jax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'l2o_jax'
# From bottom to top; a module may import those of lower floors only.
FLOORS = (
  ('checks', 'cpu', 'files', 'gps.linalg'),
  ('base',),
  (
    'cells.layers',
    'checkpoint',
    'features',
    'guard',
    'leaves',
    'policy_features',
    'scale_free',
    'unroll',
  ),
  ('cells.lstm', 'cells.mlp', 'cells.standardised'),
  ('cells.gated', 'cells.ntm_bfgs', 'coordinatewise'),
  ('cells.schedule_free', 'evaluation', 'groups', 'truncated_bptt'),
  ('blocks', 'evolution', 'learned_optimizers'),
  ('theta_files',),
  ('pretrained.__init__',),
  ('optimizees.classifier', 'optimizees.quadratic', 'optimizees.regression'),
  ('optimizees.convnet', 'optimizees.neural_art'),
  ('optimizees.rescaled',),
  ('optimizees.__init__',),
  ('datasets.__init__',),
  ('datasets.archives',),
  ('datasets.prepare',),
  ('datasets.__main__',),
  ('gps.lqr', 'gps.policy'),
  ('gps.controller',),
  ('gps.rollouts',),
  ('gps.costs', 'gps.dynamics'),
  ('gps.model',),
  ('gps.iteration',),
  ('gps.badmm', 'gps.mirror_descent'),
  ('gps.guided_policy_search', 'imitation'),
  ('__init__',),
)
EMPTY = ('cells.__init__', 'gps.__init__')
# Trainers know cells through the NamedTuples of base.py only, but for these.
TRAINERS = ('truncated_bptt', 'imitation', 'gps.')
KNOW_CELLS = {
  'gps.policy': 'puts `standardised` around the cell: the units of the task'
}
MAX_LINES = 400


def imports(path):
  """Absolute module names that a file imports, lazily or not."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def name_of(path):
  return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def library():
  """{module: own modules that it imports}, without the package's name."""
  files = sorted(PACKAGE.rglob('*.py'))
  own = {name_of(path) for path in files}
  graph = {}
  for path in files:
    found = [name.removeprefix('l2o_jax.') for name in imports(path)]
    # `from l2o_jax import optimizees` means its __init__.
    found += [f'{name}.__init__' for name in found]
    graph[name_of(path)] = own.intersection(found) - {name_of(path)}
  return graph


def lines_of_code(path):
  """Without blank lines, comments and docstrings."""
  text, documents = path.read_text(), set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      if isinstance(node.value.value, str):
        documents.update(range(node.lineno, node.end_lineno + 1))
  return sum(
    bool(line.strip()) and not line.strip().startswith('#')
    for i, line in enumerate(text.splitlines(), 1)
    if i not in documents
  )


class StructureTest(absltest.TestCase):
  def test_every_module_is_on_a_floor_and_imports_lower_ones(self):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    graph = library()
    self.assertEqual(set(graph), {*floor, *EMPTY})
    for module, used in graph.items():
      if module in EMPTY:
        self.assertEmpty(used, module)
        continue
      for other in used - set(EMPTY):
        self.assertLess(floor[other], floor[module], f'{module}: {other}')

  def test_who_knows_what(self):
    for module, used in library().items():
      if module.startswith('optimizees.') and module != 'optimizees.__init__':
        self.assertLessEqual(used, {'base', 'checks', 'cpu'}, module)
      if module.startswith(TRAINERS):
        cells = {name for name in used if name.startswith('cells.')}
        self.assertEqual(bool(cells - {'cells.__init__'}), module in KNOW_CELLS)

  def test_what_only_some_may_import(self):
    never = ('experiments', 'tests', 'absl', 'matplotlib', 'tensorflow', 'tqdm')
    for path in PACKAGE.rglob('*.py'):
      for module in imports(path):
        top = module.split('.')[0]
        self.assertNotIn(top, never, str(path))
        if top == 'tensorflow_datasets':
          self.assertEqual(path.parent.name, 'datasets')

  def test_only_experiments_have_flags_and_pictures(self):
    for path in ROOT.rglob('*.py'):
      top = path.relative_to(ROOT).parts[0]
      if top.startswith('.') or top == 'build':  # environments, not ours
        continue
      tops = set(imports(path))
      if 'absl.flags' in tops or 'matplotlib' in {
        t.split('.')[0] for t in tops
      }:
        self.assertIn(top, ('experiments', 'tests'), str(path))

  def test_no_module_is_out_of_reach(self):
    """`l2o_jax.unroll` is the function; its module is found by its name."""
    for path in PACKAGE.rglob('*.py'):
      name = f'l2o_jax.{name_of(path)}'.removesuffix('.__init__')
      if name.endswith('__main__'):
        continue
      module = importlib.import_module(name)
      self.assertIsInstance(module, types.ModuleType)
      self.assertEqual(module.__file__, str(path))
      names = [n for n in vars(module) if not n.startswith('_')]
      scope = {}
      for public in names[-1:]:
        exec(f'from {name} import {public}', scope)
        self.assertIs(scope[public], getattr(module, public))
    for name in ('unroll', 'coordinatewise', 'truncated_bptt'):
      self.assertTrue(callable(getattr(l2o_jax, name)))

  def test_public_names(self):
    self.assertEqual(list(l2o_jax.__all__), sorted(l2o_jax.__all__, key=_order))
    for name in l2o_jax.__all__:
      self.assertTrue(hasattr(l2o_jax, name), name)

  def test_size(self):
    """The budget is printed; a file that is not read to its end is refused."""
    total = 0
    for path in sorted(PACKAGE.rglob('*.py')):
      code, lines = lines_of_code(path), len(path.read_text().splitlines())
      total += code
      print(f'{code:5} of {lines:4} lines: {name_of(path)}')
      self.assertLessEqual(lines, MAX_LINES, str(path))
    print(f'{total:5} lines of code in all')


def _order(name):
  return (name[0].islower(), name)


if __name__ == '__main__':
  absltest.main()
