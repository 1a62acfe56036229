"""One pretraining run: the method, the data, the loop. Stands on stoplab_platform."""
