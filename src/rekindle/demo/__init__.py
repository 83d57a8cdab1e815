# SPDX-License-Identifier: Apache-2.0
"""The whole story on drawn scenes: check, pretrain, compare, look. `demo.story` does the work."""
