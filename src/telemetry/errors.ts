import { z } from 'zod';
import { ERROR_CODES, type ErrorCode, isErrorCode } from './error-codes.ts';

/** Whose fault it is: where a person should look first. */
export const faultSchema = z.enum(['user', 'source', 'destination', 'network', 'service', 'ums']);
export type Fault = z.infer<typeof faultSchema>;

/** The wire form of an error: what agents and the command line send each other. Sizes are in characters. */
export const errorReportSchema = z.object({
  code: z.string().max(64),
  message: z.string().max(8192),
  fault: faultSchema,
  state: z.string().max(2048),
  mend: z.string().max(2048),
  detail: z.string().max(16_384).optional(),
});
export type ErrorReport = z.infer<typeof errorReportSchema>;

export interface ErrorParts {
  /** What happened, one sentence. */
  message: string;
  fault: Fault;
  /** What state everything is in now, one sentence ("The service runs on alpha as before."). */
  state?: string;
  /** What the reader can do about it. */
  mend?: string;
  /** Lines of a log or a command's output that matter. */
  detail?: string;
  cause?: unknown;
}

/** The one error type that crosses module boundaries on purpose. Anything else thrown is a defect (UMS_E_INTERNAL). */
export class UmsError extends Error {
  readonly code: ErrorCode;
  readonly fault: Fault;
  readonly state: string;
  readonly mend: string;
  readonly detail: string | undefined;

  constructor(code: ErrorCode, parts: ErrorParts) {
    super(parts.message, parts.cause === undefined ? undefined : { cause: parts.cause });
    this.name = 'UmsError';
    this.code = code;
    this.fault = parts.fault;
    this.state = parts.state ?? '';
    this.mend = parts.mend ?? '';
    this.detail = parts.detail;
  }

  get exitStatus(): number {
    return ERROR_CODES[this.code].exit;
  }

  toReport(): ErrorReport {
    return {
      code: this.code,
      message: this.message.slice(0, 8192),
      fault: this.fault,
      state: this.state.slice(0, 2048),
      mend: this.mend.slice(0, 2048),
      ...(this.detail === undefined ? {} : { detail: this.detail.slice(0, 16_384) }),
    };
  }

  static fromReport(report: ErrorReport): UmsError {
    const code = isErrorCode(report.code) ? report.code : 'UMS_E_INTERNAL';
    return new UmsError(code, report.detail === undefined ? { ...report } : { ...report, detail: report.detail });
  }
}

/** Turns whatever was thrown into a UmsError; an unexpected one keeps its stack in `detail`. */
export function toUmsError(thrown: unknown): UmsError {
  if (thrown instanceof UmsError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  const stack = thrown instanceof Error ? thrown.stack : undefined;
  return new UmsError('UMS_E_INTERNAL', {
    message: message === '' ? 'unknown failure' : message,
    fault: 'ums',
    mend: 'Please report this with the output of the command.',
    ...(stack === undefined ? {} : { detail: stack }),
    cause: thrown,
  });
}
