"""The default: SOAP (Vyas et al. 2024). Read `update.SoapUpdate.work` first.

    config        constants, and what a multiplier of step sizes reads
    soap          `Soap` with its constants; `SoapRule` on a graph
    update        one step: `work` is the algorithm, `direction` has the equations
    elementwise   momentum, second moments, change of the weights
    eigenbasis    renewal of eigenbases, and when it is due
    scalars       gradient scale, step size and weight decay of every parameter
    schedule      what depends on step counts, roles and fans alone
    first_steps   factors of step sizes by initial weights and first gradients
    state         the state of many parameters in a few tensors

A `Step` lives for one step. `SoapRule.update` opens it, reads the ages of its
parameters and exhausts its changes; only then is the step counted.

Subclasses for accelerators and for several processes override `SoapRule.make_update`,
`first_record` and `read_ages`, and of `SoapUpdate` `make_layout`, `renewal_positions`,
`open`, `changes`, `compute_scalars`, `bucket_changes`, `gradients`, `add_squares` and
`change`. They set `elementwise` and `on_host`.
"""
