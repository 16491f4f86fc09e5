"""Rules for one family of training runs (`meta_train.specialize`), and their parts.

rates        step sizes by parameter and time, which multiply those of a rule
first_order  Adam and Muon with a schedule
storage      rules with such rates in files, and their names
"""
