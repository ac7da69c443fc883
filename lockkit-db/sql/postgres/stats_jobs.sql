-- How many jobs are where. Costs a walk over the live jobs' indexes and over the kept ones.
SELECT (SELECT count(*) FROM lockkit_job WHERE state = 0),
       (SELECT count(*) FROM lockkit_job WHERE state = 1),
       (SELECT count(*) FROM lockkit_job WHERE state = 2),
       (SELECT count(*) FROM lockkit_done),
       (SELECT count(*) FROM lockkit_dead)
