"""Updates of the masks: what runs when a schedule says so.

An update is a frozen dataclass that is called with the layers and the context and returns what each
layer becomes. ``prune_and_regrow`` is the paper's cycle, ``gradual_pruning`` lowers the density,
``stored_values`` reads values that inactive weights keep, ``constant_fan_in`` gives each neuron equally
many inputs. ``schedule`` says at which steps they run, ``record`` notes what they did.

Imports ``rules`` and ``positions``. To add one: a file here; a method's row names it.
"""
