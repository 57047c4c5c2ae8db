export { choose, type Choice, type ChoiceInputs, type Feasibility, isDependent, type TechniqueRow } from './choose.ts';
export { type Decision, decide, type Progress, type Rehearsed, rehearse, THROTTLE_STEPS } from './converge.ts';
export { type CostInputs, type Outlook, outlook, type Prediction, predict } from './cost.ts';
export {
  costsAfter,
  DEFAULT_COSTS,
  type FixedCosts,
  fixedCostsSchema,
  learnCosts,
  type MeasuredSteps,
  type ObservedCosts,
  observedCosts,
  observedCostsSchema,
} from './costs.ts';
export { type FreezeParts, type Link, PATH_BYTES_S, type Situation } from './freeze.ts';
export {
  type Goals,
  goalsSchema,
  MAX_DOWNTIME_MS,
  MAX_ROUNDS,
  ON_STALL,
  type OnStall,
  onStallSchema,
  type RoundMeasurement,
  type SentBytes,
  TECHNIQUES,
  type Technique,
  techniqueSchema,
  type TrackerKind,
} from './model.ts';
export {
  type DirtyModel,
  type DirtyObservation,
  dirtyModelOf,
  type PowerLaw,
  powerLaw,
  predictDirty,
  type Predictor,
  priorOf,
} from './predictor.ts';
export {
  type ErrorStatistics,
  type Outcome,
  outcomeSchema,
  type PredictionErrors,
  type PredictionRecord,
  predictionError,
  predictionSchema,
  type StoredPrediction,
  storedPrediction,
} from './records.ts';
