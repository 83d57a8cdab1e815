# SPDX-License-Identifier: Apache-2.0
"""Time to gain: what a user waits for is not a step but a better model."""
