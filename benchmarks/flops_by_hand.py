"""The operations of published models, worked out on paper: two for a weight and the position that it meets."""

from __future__ import annotations

from simpletuner.helpers.training.alignment.geometry import TokenGrid

TEACHER_SIDE, TEACHER_PATCH, TEACHER_WIDTH, TEACHER_LAYERS, TEACHER_HIDDEN = 518, 14, 1536, 40, 4096  # DINOv2-g


def conv(cells: int, taken: int, given: int, kernel: int = 9) -> int:
    return 2 * cells * taken * given * kernel


def resnet(cells: int, taken: int, given: int, kernel: int = 9) -> int:
    shortcut = conv(cells, taken, given, 1) if taken != given else 0
    return conv(cells, taken, given, kernel) + conv(cells, given, given, kernel) + shortcut


def unet_attention(cells: int, width: int, layers: int, text: tuple[int, int]) -> int:
    """Self-attention, cross-attention and GEGLU: 4 + 2 + 12 squares of weights for a cell, and two for a text token."""
    tokens, text_width = text
    layer = 2 * cells * 18 * width**2 + 4 * tokens * text_width * width + 4 * cells * (cells + tokens) * width
    return layers * layer + (4 * cells * width**2 if layers else 0)


def unet(side: int, widths: tuple[int, ...], layers: tuple[int, ...], middle: int, text: tuple[int, int]) -> int:
    """Two residual blocks a level down, two in the middle, three a level up, each with so many attention layers."""
    levels = [((side >> level) ** 2, width, layers[level]) for level, width in enumerate(widths)]
    total, current, skips = conv(side**2, 4, widths[0]), widths[0], [widths[0]]
    for level, (cells, width, depth) in enumerate(levels):
        for _ in range(2):
            total += resnet(cells, current, width) + unet_attention(cells, width, depth, text)
            current = width
            skips.append(width)
        if level < len(levels) - 1:
            total += conv(cells // 4, width, width)
            skips.append(width)
    cells = levels[-1][0]
    total += 2 * resnet(cells, current, current) + unet_attention(cells, current, middle, text)
    for level, (cells, width, depth) in reversed(list(enumerate(levels))):
        for _ in range(3):
            total += resnet(cells, current + skips.pop(), width) + unet_attention(cells, width, depth, text)
            current = width
        if level > 0:
            total += conv(4 * cells, width, width)
    return total + conv(side**2, current, 4)


def joint_transformer(layers: int, width: int, image: int, text: int) -> int:
    """Text and image in one attention; both have 12 squares of weights, in double and in single blocks."""
    tokens = image + text
    return layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


def cross_transformer(layers: int, width: int, hidden: int, tokens: int, text: int) -> int:
    """Self-attention, cross-attention to the text and two layers with `hidden` between."""
    weights = 2 * tokens * (6 * width**2 + 2 * width * hidden) + 2 * text * 2 * width**2
    return layers * (weights + 4 * tokens * (tokens + text) * width)


def decoder(
    cells: int, latent_width: int, widths: tuple[int, ...], frames: tuple[int, ...], kernel: int = 9, narrowing: int = 1
) -> int:
    """Attention in the middle, then three residual blocks a level; between levels the sides double.

    Args:
        cells: of a latent frame. frames: at each level; a convolution over time doubles them.
        narrowing: by what the convolution behind an upsampling divides the width.
    """
    current = widths[0]
    first = cells * frames[0]
    total = conv(first, latent_width, current, kernel) + 2 * resnet(first, current, current, kernel)
    total += frames[0] * (8 * cells * current**2 + 4 * cells**2 * current)
    for level, width in enumerate(widths):
        for _ in range(3):
            total += resnet(cells * frames[level], current, width, kernel)
            current = width
        if level < len(widths) - 1:
            total += conv(cells * (frames[level + 1] - frames[level]), width, 2 * width, 3)
            cells *= 4
            current = width // narrowing
            total += conv(cells * frames[level + 1], width, current)
    return total + conv(cells * frames[-1], current, 3, kernel)


def encoder(grid: TokenGrid) -> int:
    """DINOv2-g on one frame, class token included."""
    tokens = grid.tokens_per_frame + 1
    weights = 4 * TEACHER_WIDTH**2 + 3 * TEACHER_WIDTH * TEACHER_HIDDEN
    return TEACHER_LAYERS * (2 * tokens * weights + 4 * tokens**2 * TEACHER_WIDTH)


def alignment(student: TokenGrid, teacher: TokenGrid, width: int, *, manifold: bool) -> int:
    """Projector and loss, with the student brought onto the teacher's grid, as in every case here."""
    projector = 6 * student.tokens * width * TEACHER_WIDTH  # forward, and the gradients of weights and input
    # Rows, then columns; the gradient goes the same way back.
    cells = teacher.height * student.height * student.width + teacher.tokens_per_frame * student.width
    resampling = 4 * student.frames * cells * TEACHER_WIDTH
    # Of two Gram matrices the halves that symmetry leaves; the gradient is one product with their difference.
    gram = 4 * teacher.tokens**2 * TEACHER_WIDTH if manifold else 0
    return projector + resampling + gram
