"""What README.md and the notes say: blocks run, commands parse, links lead."""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import tempfile

from absl.testing import absltest, parameterized

from experiments.common import cli

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
  str(path.relative_to(ROOT)): path
  for pattern in ('*.md', 'experiments/**/*.md', 'l2o_jax/**/*.md')
  for path in ROOT.glob(pattern)
} | {str(p.relative_to(ROOT)): p for p in ROOT.glob('tests/**/*.md')}
README = (ROOT / 'README.md').read_text()
SHELLS = ('sh', 'bash', 'shell', 'console')


def blocks(text: str):
  """(language, code, whether `<!-- continued -->` stands above) of fences."""
  pattern = r'(<!-- continued -->\n+)?^```(\w*)\n(.*?)^```$'
  found = re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
  return [(m[2], m[3], bool(m[1])) for m in found]


def commands(text: str):
  """Words of every command of the shell blocks, comments left out."""
  for language, code, _ in blocks(text):
    if language not in SHELLS:
      continue
    for line in code.replace('\\\n', ' ').splitlines():
      words = shlex.split(line.removeprefix('$ '), comments=True)
      while words:
        end = words.index('&&') if '&&' in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def inline_commands(text: str):
  """Words of `python -m experiments.NAME ...` and `NAME --flag` in a line."""
  for code in re.findall(r'`([^`\n]+)`', text):
    code = code.removeprefix('python -m experiments.')
    if re.fullmatch(r'[a-z_]+(\.[a-z_]+)*( --.*)?', code):
      name, *flags = shlex.split(code)
      if (ROOT / 'experiments' / f'{name.replace(".", "/")}.py').exists():
        yield ['python', '-m', f'experiments.{name}', *flags]


def check_command(words):
  """Raises unless the module exists and, if a binary, takes these flags."""
  if '-m' not in words:
    return
  name, *flags = words[words.index('-m') + 1 :]
  if importlib.util.find_spec(name) is None:
    raise ModuleNotFoundError(name)
  if name.startswith('experiments.'):
    experiment = getattr(importlib.import_module(name), 'EXPERIMENT', None)
    if experiment is not None:
      cli.parse(experiment, [name, *flags])


def anchors(text: str):
  """GitHub's names of a page's headings."""
  heads = re.findall(
    r'^#+ (.*)', re.sub(r'```.*?```', '', text, flags=re.S), re.M
  )
  return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in heads}


class ReadmeTest(parameterized.TestCase):
  def test_python_blocks_run(self):
    """In order, in a folder of their own where `experiments/` is seen too.

    Meta-training for 2 epochs of 50.
    """
    folder = self.enter_context(tempfile.TemporaryDirectory())
    os.symlink(ROOT / 'experiments', f'{folder}/experiments')
    names, count = {}, 0
    epochs = 'jax.random.split(jax.random.key(1), 50)'
    self.assertEqual(README.count(epochs), 1)
    shorter = README.replace(epochs, epochs.replace('50', '2'))
    with contextlib.chdir(folder):
      for language, code, continued in blocks(shorter):
        if language == 'python':
          names = names if continued else {'__name__': 'readme'}
          exec(compile(code, f'README.md, block {count}', 'exec'), names)
          count += 1
    self.assertGreater(count, 0)

  def test_commands(self):
    told = [*commands(README), *inline_commands(README)]
    told += commands(PAGES['CONTRIBUTING.md'].read_text())
    experiments = {w for words in told for w in words if 'experiments.' in w}
    self.assertIn('experiments.quadratics', experiments)
    for words in told:
      with self.subTest(shlex.join(words)):
        check_command(words)

  def test_wrong_commands_are_found(self):
    text = '```sh\nA=1 .venv/bin/python -m experiments.mnist --speed=3\n```'
    (words,) = commands(text)
    with self.assertRaisesRegex(cli.UsageError, 'speed'):
      check_command(words)
    with self.assertRaises(ModuleNotFoundError):
      check_command(['python', '-m', 'experiments.nonesuch'])
    (words,) = inline_commands('| `quadratics --preset=huge` |')
    with self.assertRaisesRegex(cli.UsageError, 'huge'):
      check_command(words)

  @parameterized.parameters(*sorted(PAGES))
  def test_links(self, page):
    path = PAGES[page]
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
      if '://' in link or link.startswith('mailto:'):
        continue
      file, _, anchor = link.partition('#')
      target = (path.parent / file).resolve() if file else path
      self.assertTrue(target.exists(), f'{page}: {link}')
      self.assertTrue(target.is_relative_to(ROOT), f'{page}: {link}')
      if anchor:
        self.assertIn(anchor, anchors(target.read_text()), f'{page}: {link}')

  def test_rooms_exist(self):
    """Paths that README.md names in `code`."""
    room = r'`((?:l2o_jax|experiments|tests)/[\w./*-]*)`'
    for name in re.findall(room, README):
      self.assertNotEmpty(list(ROOT.glob(name.rstrip('/'))), name)

  @parameterized.parameters(('README.md', 150), ('BUILD_NOTES.md', 250))
  def test_length(self, page, limit):
    self.assertLessEqual(len(PAGES[page].read_text().splitlines()), limit)


if __name__ == '__main__':
  absltest.main()
