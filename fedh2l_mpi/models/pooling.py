"""Max-pooling over 2 x 2 windows that is quick for few channels, too.

Shape letters: B minibatch, K channels, H, W pixels.
"""

from torch import Tensor, nn
from torch.nn import functional

# PyTorch's kernel goes through channels in steps of one vector register, 16 numbers of float32 at most, and through
# what is left over one by one.
LANES = 16


class MaxPool2x2(nn.Module):
    """`nn.MaxPool2d(2)`, forward and backward, bit for bit.

    For channels-last images on a CPU whose channels do not fill vector registers, the images of a minibatch are laid
    side by side as channels: pooling looks at one channel alone, so nothing else changes. The six channels of
    LeNet-5's first layer took longer than the convolution before them; this takes a third of that.
    """

    def forward(self, images_BKHW: Tensor) -> Tensor:
        batch, channels, height, width = images_BKHW.shape
        if images_BKHW.device.type != "cpu" or channels % LANES == 0:
            return functional.max_pool2d(images_BKHW, 2)
        side_by_side = images_BKHW.permute(2, 3, 0, 1).reshape(1, height, width, batch * channels)
        pooled = functional.max_pool2d(side_by_side.permute(0, 3, 1, 2), 2)
        apart = pooled.permute(0, 2, 3, 1).reshape(height // 2, width // 2, batch, channels)
        # Images one after the other again, channels last; not a view, so that ReLU may work in place.
        return apart.permute(2, 0, 1, 3).contiguous().permute(0, 3, 1, 2)
