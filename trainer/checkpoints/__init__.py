"""Checkpoints that any hardware can go on from.

    checkpoints/step-000100/
      adapter_model.safetensors, adapter_config.json, tokenizer    plain PEFT, float32 masters
      optimizer.safetensors    moments and step of each trained parameter, by name, never sharded
      ranks.safetensors        what each rank keeps for itself: random generators, loss so far
      state.json               step, schedule, callbacks (`state.RunState`)
      contract.json            what must be the same for the run to go on (`contract`)
      manifest.json            size and SHA-256 of every file; written last
    checkpoints/latest         link to the newest

Without a valid manifest a checkpoint does not exist. Full fine-tuning keeps `model*.safetensors` in
place of the adapter; under DeepSpeed, DeepSpeed's own shards (`sharded/`) in place of both.
"""
