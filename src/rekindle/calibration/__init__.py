# SPDX-License-Identifier: Apache-2.0
"""How often the verdict is wrong: simulated rows and real small models, judged by the product's own functions."""
