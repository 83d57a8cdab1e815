# SPDX-License-Identifier: Apache-2.0
"""Ground floor, open to every other folder: errors, options, progress, schedules, randomness, precision, distribution."""
