"""Puts kept thetas into the package, and writes the page that describes them.

Copy and paste:
  python -m experiments.results.make_pretrained

A kept run is in the package if it stands in NAMES.  The page has what run.json
says of it, and the section "Where it fails" of the NOTES.md beside it, behind
the introduction in make_pretrained.md.
"""

import hashlib
import json
import pathlib
import shutil

from l2o_jax.theta_files import spelled

RESULTS = pathlib.Path(__file__).resolve().parent
TEMPLATE = RESULTS / 'make_pretrained.md'
PACKAGE = RESULTS.parents[1] / 'l2o_jax' / 'pretrained'
NAMES = {
  'robust': 'robust/full',
  'robust_coordinatewise': 'robust/coordinatewise',
  'quadratics': 'quadratics/full',
  'quadratics_averaging': 'quadratics/averaging',
  'quadratics_ntm_bfgs': 'quadratics/ntm_bfgs',
  'mnist_lstm': 'mnist/quick',
  'mnist_gated': 'mnist/gated',
  'cifar10': 'cifar10/quick',
  'cifar10_gated': 'cifar10/gated',
  'neural_art': 'neural_art/quick',
  'neural_art_gated': 'neural_art/gated',
  'predicted_step_descent': 'predicted_step_descent/full',
  'scale_free': 'predicted_step_descent/scale_free',
}


def section(notes: str, title: str) -> str:
  """The text under a heading of the second level."""
  _, _, rest = notes.partition(f'\n## {title}\n')
  return rest.partition('\n## ')[0].strip()


def entry(name: str, run: pathlib.Path) -> str:
  """What the page says of one theta."""
  record = json.loads((run / 'run.json').read_text())
  data = (run / 'theta.npz').read_bytes()
  seconds = record.get('seconds')
  minutes = record.get('minutes') or (seconds and round(seconds / 60))
  versions = ', '.join(f'{k} {v}' for k, v in record['versions'].items() if v)
  results = [
    f'- {row["figure"]}: {row["ours"]}; best tuned: {row["best_tuned"]}'
    for row in record['headline']
  ]
  link = f'../../experiments/results/{run.relative_to(RESULTS)}/NOTES.md'
  fails = section((run / 'NOTES.md').read_text(), 'Where it fails')
  lines = [
    f'## {name}',
    '',
    f'- optimizer: `{spelled(record["optimizer"])}`',
    f'- made by: `{record["command"]}`',
    f'- {minutes} minutes of meta-training; {record["device"]}; seed '
    f'{record["seed"]}; commit {record["commit"]}; {versions}',
    f'- {len(data):,} bytes, SHA-256 `{hashlib.sha256(data).hexdigest()}`',
    *results,
    f'- more: [NOTES.md]({link})',
    '',
    f'**Where it fails.** {fails}',
  ]
  return '\n'.join(lines) + '\n'


def page() -> str:
  """README.md of the package's directory, as it should be."""
  entries = [entry(name, RESULTS / run) for name, run in NAMES.items()]
  return TEMPLATE.read_text().replace('{entries}', '\n'.join(entries))


def main():
  for name, run in NAMES.items():
    shutil.copyfile(RESULTS / run / 'theta.npz', PACKAGE / f'{name}.npz')
  (PACKAGE / 'README.md').write_text(page())


if __name__ == '__main__':
  main()
