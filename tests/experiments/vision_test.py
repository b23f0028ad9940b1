"""Nets of neural art against plain convolutions; pictures; bad input."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.common import images, vision
from experiments.common.settings import UsageError
from tests import quick

PIXELS = np.random.default_rng(0).uniform(size=(1, 24, 24, 3))
CHANNELS = {'conv1_1': (3, 4), 'conv1_2': (4, 4), 'conv2_1': (4, 6)}
CHANNELS |= {'conv2_2': (6, 6), 'conv3_1': (6, 8)}

# Of the float32 weights, by torch's convolutions.
MEANS = [11.9151, 23.3344, 25.3758, 35.5836, 15.4964]


def conv(x, w, b):
  axes = ('NHWC', 'HWIO', 'NHWC')
  y = jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=axes)
  return jnp.maximum(y + b, 0)


def toy_vgg():
  random = np.random.default_rng(1)
  return {
    name: (random.normal(size=(3, 3, *c)), random.normal(size=c[1]))
    for name, c in CHANNELS.items()
  }


class NetsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, **arrays):
    path = self.path / 'weights.npz'
    np.savez(path, **{k: np.float32(v) for k, v in arrays.items()})
    return path

  def reference(self, x):
    """Content and style of `toy_vgg` from x."""
    style = []
    for name, (w, b) in toy_vgg().items():
      x = conv(x, jnp.float32(w), jnp.float32(b))
      if name.endswith('_1'):
        style.append(x)
      if name.endswith('_2'):
        N, H, W, C = x.shape
        x = x.reshape(N, H // 2, 2, W // 2, 2, C).max((2, 4))
    return x, style

  def compare(self, path, x):
    found = quick.jit(lambda net: net(jnp.float32(PIXELS)))(
      vision.read_net(path)
    )
    expected = quick.jit(self.reference)(jnp.float32(x))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
      found,
      expected,
    )

  def test_the_form_of_torchvision(self):
    arrays = {}
    for place, (w, b) in zip((0, 2, 5, 7, 10), toy_vgg().values()):
      arrays[f'features.{place}.weight'] = w.transpose(3, 2, 0, 1)
      arrays[f'features.{place}.bias'] = b
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    self.compare(self.save(**arrays), (PIXELS - mean) / std)

  def test_the_normalised_form(self):
    arrays, mean = {'mean_bgr': [100.0, 110.0, 120.0]}, [100.0, 110.0, 120.0]
    for name, (w, b) in toy_vgg().items():
      arrays |= {f'{name}/w': w, f'{name}/b': b}
    self.compare(self.save(**arrays), 255 * PIXELS[..., ::-1] - mean)

  def test_weights_of_half_precision(self):
    """They are float32 afterwards, as the pixels are."""
    arrays = {'mean_bgr': np.zeros(3, np.float16)}
    for name, (w, b) in toy_vgg().items():
      arrays |= {f'{name}/w': np.float16(w), f'{name}/b': np.float16(b)}
    np.savez(self.path / 'half.npz', **arrays)
    net = vision.read_net(self.path / 'half.npz')
    dtypes = {x.dtype for x in jax.tree.leaves(net)}
    self.assertEqual(dtypes, {jnp.dtype('float32')})

  def test_squeezenet(self):
    """Sizes of all layers, and literal means of one picture."""
    _, unseen = vision.read_contents()
    net = vision.read_net()
    pixels = images.averaged(unseen[:1], 64).astype(np.float32) / 255
    content, style = quick.jit(lambda net: net(jnp.asarray(pixels)))(net)
    sizes = [(32, 64), (15, 128), (15, 128), (7, 256), (7, 256)]
    self.assertEqual([a.shape[2:] for a in style], sizes)
    np.testing.assert_array_equal(content, style[2])
    found = [float(a.mean()) for a in style]
    np.testing.assert_allclose(found, MEANS, rtol=1e-3)

  def test_bad_weights(self):
    with self.assertRaisesRegex(
      UsageError, '--net_weights=/no/file cannot be read'
    ):
      vision.read_net('/no/file')
    (self.path / 'vgg.pth').write_bytes(b'PK\3\4 pickled')
    with self.assertRaisesRegex(UsageError, 'must be an .npz of a SqueezeNet'):
      vision.read_net(self.path / 'vgg.pth')
    with self.assertRaisesRegex(UsageError, 'holds a'):
      vision.read_net(self.save(a=np.zeros(3)))
    arrays = {'mean_bgr': np.zeros(3)}
    for name, (w, b) in toy_vgg().items():
      arrays |= {f'{name}/w': w, f'{name}/b': b}
    arrays['conv2_2/w'] = np.zeros((3, 3, 5, 6))
    with self.assertRaisesRegex(UsageError, 'has a wrong layout'):
      vision.read_net(self.save(**arrays))


class PicturesTest(absltest.TestCase):
  def test_packaged(self):
    train, test = vision.read_contents()
    self.assertEqual(train.shape, (60, 128, 128, 3))
    self.assertEqual(test.shape, (23, 128, 128, 3))
    self.assertLess(min(x.std() for x in test), 90)
    self.assertGreater(min(x.std() for x in test), 10)  # no empty tile
    self.assertEqual(images.averaged(test, 64).shape, (23, 64, 64, 3))
    for name in vision.STYLES:
      self.assertEqual(vision.read_style(name, 64).shape, (64, 64, 3))

  def test_of_ones_own(self):
    import PIL.Image

    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory)
      save = lambda name, size, color: PIL.Image.new('RGB', size, color).save(
        path / name
      )
      for i in range(4):
        save(f'{i}.png', (150 + i, 130), (i, 10 * i, 100))
      with self.assertRaisesRegex(UsageError, 'has 4 pictures; 5 or more'):
        vision.read_contents(directory)
      save('4.png', (128, 140), (4, 40, 100))
      train, test = vision.read_contents(directory)
      self.assertEqual((len(train), len(test)), (4, 1))
      self.assertEqual(test[0, 60, 60].tolist(), [4, 40, 100])
      save('4.png', (127, 140), (0, 0, 0))
      with self.assertRaisesRegex(UsageError, '4.png is 127 x 140 pixels'):
        vision.read_contents(directory)
      (path / '4.png').write_text('not a picture')
      with self.assertRaisesRegex(UsageError, '4.png cannot be read'):
        vision.read_contents(directory)
      with self.assertRaisesRegex(UsageError, '--style=.* cannot be read'):
        vision.read_style(str(path / 'none.jpg'), 64)
      with self.assertRaisesRegex(UsageError, 'cannot be read: No such file'):
        vision.read_contents(path / 'nowhere')

  def test_as_a_viewer_shows_them(self):
    """16 bits, transparent, and turned."""
    import PIL.Image

    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    grey = np.full((64, 64), 32768, np.uint16)
    PIL.Image.fromarray(grey).save(path / 'grey.png')
    PIL.Image.new('RGBA', (64, 64), (0, 0, 0, 0)).save(path / 'clear.png')
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255  # white on the right, and below once it is turned
    turned = PIL.Image.fromarray(half)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path / 'turned.png', exif=exif)
    read = lambda name: vision.read_style(str(path / name), 64)
    self.assertEqual(read('grey.png')[3, 5].tolist(), [128] * 3)
    PIL.Image.fromarray(np.full((64, 64), 200, np.int32)).save(path / 'i.tif')
    self.assertEqual(read('i.tif')[3, 5].tolist(), [200] * 3)
    self.assertEqual(read('clear.png')[3, 5].tolist(), [255] * 3)
    self.assertEqual(read('turned.png')[[5, 60], 5, 0].tolist(), [0, 255])


if __name__ == '__main__':
  absltest.main()
