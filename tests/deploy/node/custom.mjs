// Checks custom resources, a JSON array on stdin, against the Prometheus operator's own schemas. Says what
// is wrong and exits 1.
import { readFileSync } from 'node:fs';
import * as models from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';

let wrong = 0;
for (const resource of JSON.parse(readFileSync(0, 'utf8'))) {
  try {
    new models[resource.kind](resource).validate();
  } catch (error) {
    wrong += 1;
    console.error(`${resource.kind} ${resource.metadata.name}: ${error.message}`);
  }
}
process.exit(wrong ? 1 : 0);
