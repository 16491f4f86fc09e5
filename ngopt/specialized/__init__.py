"""Rules for one family of training runs (`meta_train.specialize`), and their parts.

rates        step sizes by parameter and time, which multiply those of a rule
first_order  Adam and Muon with a schedule
rule         a rule with such rates, for networks of the shapes that it was learned on
"""
